// The interface to systemd: listening sockets that it passes (sd_listen_fds) and notifications (sd_notify).

import { logDebug } from './log';
import { native } from './native';

/** The first passed descriptor, by convention. */
export const LISTEN_FDS_START = 3;

let count = -1;

/** Number of descriptors passed, from LISTEN_FDS_START on; 0 if the variables are meant for another process. */
export function listenFdCount(): number {
  if (count >= 0) return count;
  const { LISTEN_PID, LISTEN_FDS } = process.env;
  const given = Number(LISTEN_PID) === process.pid ? Number(LISTEN_FDS) : 0;
  count = Number.isInteger(given) && given > 0 ? given : 0;
  // child processes must not take the sockets for their own
  delete process.env.LISTEN_PID;
  delete process.env.LISTEN_FDS;
  delete process.env.LISTEN_FDNAMES;
  return count;
}

export const notifyState: {
  /** path, '@' in front = abstract; null = no notifications */
  socket: string | null;
} = { socket: null };

/** Reads the address from the environment and leaves it there, for a process that takes over. Called once at start. */
export function notifySetup(): void {
  const path = process.env.NOTIFY_SOCKET ?? '';
  // systemd's vsock addresses, for virtual machines, are not supported
  if (path.startsWith('/') || path.startsWith('@')) notifyState.socket = Buffer.from(path, 'utf8').toString('latin1');
}

/** Sends assignments, one per line. */
export function notify(...lines: string[]): void {
  if (notifyState.socket === null) return;
  const res = native.sendDatagram(notifyState.socket, lines.join('\n'));
  if (res < 0) logDebug(`sd_notify: ${native.strerror(-res)}`);
}

/** A reload begins; READY=1 ends it. Type=notify-reload also requires the monotonic clock. */
export function notifyReloading(): void {
  notify('RELOADING=1', `MONOTONIC_USEC=${process.hrtime.bigint() / 1000n}`);
}
