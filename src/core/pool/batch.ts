/*
 * The packets that the pooler sent to a server for a client, from the first packet of a transaction up to its Sync.
 * They are kept until the first answer: if a prepared statement turns out to be unusable, it is prepared again and the
 * batch is sent again. session/outgoing.ts adds the packets, session/repair.ts sends them again.
 */
import { PktBuf } from '../wire/pktbuf';

/** Largest batch that is kept, in bytes. */
const BATCH_MAX = 64 * 1024;
/** A buffer that has grown beyond this size is not kept for the next batch. */
const BATCH_KEEP_MAX = 4 * 1024;

export class Batch {
  private readonly buf = new PktBuf();
  /** the packets being sent belong to the batch */
  recording = false;
  /** the batch's Sync has been sent */
  complete = false;
  /** RequestQueue.total when the batch began */
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

  /** Notes that a packet is about to be sent. @param sync the packet is a Sync */
  note(sync: boolean): void {
    if (this.complete) this.recording = false;
    else if (sync) this.complete = true;
  }

  /** Discards the batch. */
  drop(): void {
    this.recording = this.complete = false;
    this.buf.reset();
    if (this.buf.buf.length > BATCH_KEEP_MAX) this.buf.buf = Buffer.allocUnsafeSlow(BATCH_KEEP_MAX);
  }

  /** True if the whole batch has been sent, nothing has been sent after it, and none of it has been answered. */
  repeatable(total: number, count: number): boolean {
    return this.recording && this.complete && total - this.begun === count;
  }

  /** A view, valid until the next add(). */
  bytes(): Buffer {
    return this.buf.written();
  }
}
