/*
 * Socket options of all TCP connections and listening sockets, from the settings. On Linux, a connection that is accepted
 * has those of its listening socket.
 */
import { logWarning } from '../base/log';
import { native } from '../base/native';
import { cf } from '../config/settings';

/** Why the last socket could not be tuned. */
export const tuneState: { error: string } = { error: '' };

/** @returns false after a warning, if the kernel rejected an option */
function tuned(fd: number, tune: () => void): boolean {
  try {
    tune();
    return true;
  } catch (err) {
    const e = err as { syscall?: string; errno?: number; message: string };
    const text = e.errno === undefined ? e.message : native.strerror(Math.abs(e.errno));
    tuneState.error = text;
    logWarning(`${e.syscall ?? 'setsockopt'}(${fd}) failed: ${text}`);
    return false;
  }
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
  return tuned(fd, () => {
    native.setUpSocket(fd);
    if (!isUnix) tuneTcp(fd);
  });
}
