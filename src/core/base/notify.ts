/*
 * Talking to the service manager as sd_notify() does: one datagram a message to the socket that NOTIFY_SOCKET names.
 * Without one nothing happens.
 */
import { logDebug } from './log';
import { native } from './native';

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
