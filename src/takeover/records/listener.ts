/*
 * The record of a listening socket, which owns its descriptor.
 */

import { usePoolerSocket } from '../../core/net/pooler';

export interface ListenerRecord {
  k: 'listener';
  fd: true;
  /** systemd created the socket, and removes its file */
  inherited: boolean;
}

export function listenerRecord(inherited: boolean): ListenerRecord {
  return { k: 'listener', fd: true, inherited };
}

export function readListener(record: ListenerRecord, fd: number): void {
  if (!usePoolerSocket(fd, record.inherited)) throw new Error('a listening socket cannot be used');
}
