/*
 * The reader of the full handover: creates databases, users, pools and sockets from the records of the old process. The
 * sockets stay frozen until this process owns them: nothing is read from them or sent to them. An invalid record
 * throws, and the new process exits.
 */

import { native } from '../core/base/native';
import type { PgDatabase, ServerSocket } from '../core/pool/bouncer';
import { FORMAT, type HandoverRecord } from './format';
import type { FrozenSockets } from './freeze';
import { type BeginRecord, readBegin } from './records/begin';
import { readDatabase } from './records/database';
import type { Frame } from './records/frame';
import { readListener } from './records/listener';
import { readPool } from './records/pool';
import { readStatement } from './records/statement';
import { readStill } from './records/still';
import { readUser } from './records/user';
import { SocketReader } from './socket-reader';

export class SnapshotReader {
  begin: BeginRecord | null = null;
  /** the last record has arrived, and its counts match the records received */
  complete = false;
  /** usec when the old process froze its sockets, 0 = it still serves */
  frozenSince = 0;
  listeners = 0;

  private frame: Frame | null = null;
  private readonly sockets = new SocketReader();

  /** All sockets with their unsent output. */
  get frozen(): FrozenSockets {
    return this.sockets.frozen;
  }

  /** Databases missing from the new config: they are killed as after RELOAD once this process owns the sockets. */
  get goneDatabases(): readonly PgDatabase[] {
    return this.frame?.goneDatabases ?? [];
  }

  /** True if the server connection was opened under settings that have changed since. */
  isOutdated(server: ServerSocket): boolean {
    return this.frame?.isOutdated(server) === true;
  }

  /**
   * Takes one record.
   * @param raw the bytes behind the record's text
   * @param takeFd returns the record's descriptor, which arrived before it; throws if there is none
   */
  take(record: HandoverRecord, raw: Buffer, takeFd: () => number): void {
    if (record.k === 'begin') this.takeBegin(record);
    else if (this.frame === null) throw new Error(`record '${record.k}' before the first`);
    else this.takeLater(record, raw, takeFd, this.frame);
  }

  private takeBegin(record: BeginRecord): void {
    if (record.format < 1 || record.format > FORMAT) throw new Error(`unknown handover format ${record.format}`);
    this.begin = record;
    this.frame = readBegin(record);
  }

  private takeLater(
    record: Exclude<HandoverRecord, BeginRecord>,
    raw: Buffer,
    takeFd: () => number,
    frame: Frame,
  ): void {
    switch (record.k) {
      case 'aheadEnd':
      case 'wait':
        return;
      case 'still':
        this.frozenSince = readStill(record);
        frame.described.clear();
        return;
      case 'listener':
        readListener(record, takeFd());
        this.listeners++;
        return;
      case 'user':
        readUser(record, frame.unknownUsers);
        return;
      case 'database':
        readDatabase(record, frame);
        return;
      case 'pool':
        readPool(record, frame);
        return;
      case 'statement':
        readStatement(record, raw, frame);
        return;
      case 'ahead':
      case 'socket':
        this.sockets.take(record, raw, record.fd ? takeFd() : -1, frame);
        return;
      case 'gone':
        for (const id of record.ids) this.sockets.takeGone(id);
        return;
      case 'end':
        frame.forgetRemovedPools();
        frame.restoreClaims();
        this.sockets.resolveLinks(frame);
        if (record.sockets !== this.sockets.arrived || record.listeners !== this.listeners) {
          throw new Error(
            `got ${this.sockets.arrived} sockets and ${this.listeners} listeners of ${record.sockets} and ${record.listeners}`,
          );
        }
        this.complete = true;
        return;
      default: {
        // a record of a newer version: ignored, but its descriptor must not shift those of later records
        const unknown = record as { fd?: boolean };
        if (unknown.fd === true) native.closeFd(takeFd());
      }
    }
  }
}
