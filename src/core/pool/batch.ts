/*
 * What a client sent to a server from the first packet of a transaction up to its Sync, in the server's words: kept until
 * the first answer, because a statement that turns out to be unusable there is prepared again and everything is repeated.
 * session/outgoing.ts adds the bytes, session/repair.ts sends them again.
 */
import { PktBuf } from '../wire/pktbuf';

/** Most bytes of a batch that are kept. */
const BATCH_MAX = 64 * 1024;
/** A buffer that grew larger than this is not kept for the next batch. */
const BATCH_KEEP_MAX = 4 * 1024;

export class Batch {
  private readonly buf = new PktBuf();
  /** what is sent now belongs to it */
  recording = false;
  /** its Sync was sent */
  complete = false;
  /** RequestQueue.total when it began */
  private begun = 0;

  begin(total: number): void {
    this.drop();
    this.recording = true;
    this.begun = total;
  }

  /** Adds bytes that are about to be sent. */
  add(src: Buffer, off: number, end: number): void {
    if (this.buf.pos + end - off > BATCH_MAX) this.drop();
    else if (this.recording) this.buf.putSlice(src, off, end - off);
  }

  /** A packet is about to be sent. @param sync it is a Sync */
  note(sync: boolean): void {
    if (this.complete) this.recording = false;
    else if (sync) this.complete = true;
  }

  /** Forgets it. */
  drop(): void {
    this.recording = this.complete = false;
    this.buf.reset();
    if (this.buf.buf.length > BATCH_KEEP_MAX) this.buf.buf = Buffer.allocUnsafeSlow(BATCH_KEEP_MAX);
  }

  /** True when all of it was sent, nothing behind it, and nothing of it is answered. */
  repeatable(total: number, count: number): boolean {
    return this.recording && this.complete && total - this.begun === count;
  }

  /** A view, valid until something else is added. */
  bytes(): Buffer {
    return this.buf.written();
  }
}
