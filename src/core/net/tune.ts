/*
 * Socket options of all TCP connections and listening sockets, from the settings. On Linux, a connection that is accepted
 * has those of its listening socket.
 */
import { logWarning } from '../base/log';
import { native } from '../base/native';
import { cf } from '../config/settings';

/** Why the last socket could not be tuned. */
export const tuneState: { error: string } = { error: '' };

/** The step that an error of the addon names, and why it failed. */
export function errorText(err: unknown): { syscall: string | undefined; message: string } {
  const { syscall, errno, message } = err as { syscall?: string; errno?: number; message: string };
  return { syscall, message: errno === undefined ? message : native.strerror(Math.abs(errno)) };
}

function tuneTcp(fd: number): void {
  native.tuneTcp(
    fd,
    cf.tcpKeepalive,
    cf.tcpKeepidle,
    cf.tcpKeepintvl,
    cf.tcpKeepcnt,
    cf.tcpUserTimeout,
    cf.tcpSocketBuffer,
  );
}

/**
 * Sets keepalive, user timeout, buffer sizes and no-delay; non-blocking and close-on-exec in any case.
 * @returns false after a warning, if the kernel rejected an option
 */
export function tuneSocket(fd: number, isUnix: boolean): boolean {
  try {
    native.setUpSocket(fd);
    if (!isUnix) tuneTcp(fd);
    return true;
  } catch (err) {
    const { syscall = 'setsockopt', message } = errorText(err);
    tuneState.error = message;
    logWarning(`${syscall}(${fd}) failed: ${message}`);
    return false;
  }
}
