// What systemd gives a service and wants to know of it: listening sockets (sd_listen_fds) and notifications (sd_notify).

import { logDebug } from './log';
import { native } from './native';

/** The first of them, by convention. */
export const LISTEN_FDS_START = 3;

let count = -1;

/** How many there are, from LISTEN_FDS_START on; 0 when the variables are meant for another process. */
export function listenFdCount(): number {
  if (count >= 0) return count;
  const { LISTEN_PID, LISTEN_FDS } = process.env;
  const given = Number(LISTEN_PID) === process.pid ? Number(LISTEN_FDS) : 0;
  count = Number.isInteger(given) && given > 0 ? given : 0;
  // a process that we start must not take them for its own
  delete process.env.LISTEN_PID;
  delete process.env.LISTEN_FDS;
  delete process.env.LISTEN_FDNAMES;
  return count;
}

export const notifyState: {
  /** path, '@' in front = abstract; null = nobody listens */
  socket: string | null;
} = { socket: null };

/** Takes the address from the environment, where it stays: an heir may need it. Called once at start. */
export function notifySetup(): void {
  const path = process.env.NOTIFY_SOCKET ?? '';
  // vsock addresses are for virtual machines
  if (path.startsWith('/') || path.startsWith('@')) notifyState.socket = Buffer.from(path, 'utf8').toString('latin1');
}

/** Sends assignments, one a line. */
export function notify(...lines: string[]): void {
  if (notifyState.socket === null) return;
  const res = native.sendDatagram(notifyState.socket, lines.join('\n'));
  if (res < 0) logDebug(`sd_notify: ${native.strerror(-res)}`);
}

/** A reload begins; READY=1 ends it. Type=notify-reload wants the monotonic clock with it. */
export function notifyReloading(): void {
  notify('RELOADING=1', `MONOTONIC_USEC=${process.hrtime.bigint() / 1000n}`);
}
