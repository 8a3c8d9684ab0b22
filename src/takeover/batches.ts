/*
 * Collects the records of a handover and sends them in batches: without blocking while the old process serves, and at
 * once while its sockets are frozen.
 */

import { constants } from 'node:os';
import { native } from '../core/base/native';
import { writeCommandComplete, writeReadyForQuery } from '../core/wire/messages';
import { PqMsg } from '../core/wire/packets';
import { PktBuf } from '../core/wire/pktbuf';
import { ETOOMANYREFS, sendAll } from './channel';
import type { HandoverRecord } from './format';
import type { Owned } from './snapshot-writer';

/** Most descriptors, and approximate size in bytes, of one batch. */
const BATCH_FDS = 200;
const BATCH_BYTES = 48 * 1024;

/** At most: the header of the message, and the length of the text. */
const HEADERS = 16;

/** The records of one handover, on their way to the new process. Some have secrets: what is sent is wiped. */
export class Batches {
  private pkt = new PktBuf(2 * BATCH_BYTES);
  private owned: Exclude<Owned, null>[] = [];
  /** errno of the failure */
  failed = 0;
  /** batches that the socket has not accepted yet, while the process serves */
  private waiting: { bytes: Buffer; owned: Exclude<Owned, null>[] }[] = [];
  /** `waiting` begins with the rest of a batch */
  private partlySent = false;
  /** how long the new process may read nothing, in ms; 0 while the process serves and must not block */
  private blockMs = 0;

  constructor(private readonly socket: number) {}

  put(record: HandoverRecord, raw: readonly Uint8Array[], owned: Owned): boolean {
    const text = JSON.stringify(record);
    const size = raw.reduce((sum, bytes) => sum + bytes.length, text.length);
    // a buffer that grows leaves a copy behind, with the secrets of earlier records
    if (this.pkt.pos > 0 && this.pkt.pos + size + HEADERS > 2 * BATCH_BYTES && !this.flush()) return false;
    this.pkt.startPacket(PqMsg.CopyData);
    this.pkt.putUint32(text.length);
    this.pkt.putChars(text);
    for (const bytes of raw) this.pkt.putBytes(bytes);
    this.pkt.finishPacket();
    if (owned !== null) this.owned.push(owned);
    return this.owned.length < BATCH_FDS && this.pkt.pos < BATCH_BYTES ? true : this.flush();
  }

  /**
   * A client may have disconnected since its record was written, and its descriptor number may belong to another client
   * by now. A later record revokes that client, so any descriptor can be sent for it.
   */
  private fdsOf(owned: Exclude<Owned, null>[]): number[] {
    return owned.map((one) => {
      if (typeof one === 'number') return one;
      one.shared = true;
      return one.handle >= 0 ? native.fdOf(one.handle) : this.socket;
    });
  }

  /** Bytes that must be sent before any record. */
  startWith(bytes: Buffer): void {
    this.waiting.push({ bytes, owned: [] });
  }

  /** From now on everything is sent at once. @param blockMs how long the new process may read nothing */
  stopServing(blockMs: number): void {
    this.blockMs = blockMs;
  }

  /** The handover has failed: nothing more is sent. */
  wipe(): void {
    for (const { bytes } of this.waiting.splice(0)) bytes.fill(0);
    this.pkt.buf.fill(0);
  }

  finish(tag: string): boolean {
    writeCommandComplete(this.pkt, tag);
    writeReadyForQuery(this.pkt);
    return this.flush();
  }

  get hasWaiting(): boolean {
    return this.waiting.length > 0;
  }

  /** What is sent next would be read as a part of a record. */
  get inRecord(): boolean {
    return this.partlySent || this.failed !== 0;
  }

  /** Sends as many waiting batches as the socket accepts. @returns true when none is left */
  pump(): boolean {
    for (let first = this.waiting[0]; first !== undefined && this.failed === 0; first = this.waiting[0]) {
      const res = native.sendFds(this.socket, first.bytes, this.fdsOf(first.owned));
      if (res === -constants.errno.EAGAIN || res === -ETOOMANYREFS) return false;
      if (res > 0) first.bytes.fill(0, 0, res);
      this.partlySent = res > 0 && res < first.bytes.length;
      if (res <= 0) {
        this.failed = -res;
      } else if (this.partlySent) {
        this.waiting[0] = { bytes: first.bytes.subarray(res), owned: [] };
      } else {
        this.waiting.shift();
      }
    }
    return this.failed === 0;
  }

  flush(): boolean {
    if (this.pkt.failed) this.failed = constants.errno.ENOMEM;
    if (this.failed !== 0) return false;
    if (this.pkt.pos > 0) this.waiting.push({ bytes: this.pkt.copy(), owned: this.owned });
    this.pkt.buf.fill(0, 0, this.pkt.pos);
    this.pkt.reset();
    this.owned = [];
    if (this.blockMs === 0) {
      this.pump();
    } else {
      for (const { bytes, owned } of this.waiting.splice(0)) {
        this.failed ||= sendAll(this.socket, bytes, this.fdsOf(owned), this.blockMs);
        bytes.fill(0);
      }
    }
    return this.failed === 0;
  }
}
