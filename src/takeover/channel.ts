/*
 * The connection between the old and the new process after the login: protocol 3 messages and the file descriptors that
 * accompany them. Sends and receives block, because neither process serves clients meanwhile.
 */
import { constants } from 'node:os';
import { native } from '../core/base/native';
import { readClock, USEC } from '../core/base/time';
import { writeQuery } from '../core/wire/messages';
import { NEW_HEADER_LEN } from '../core/wire/packets';
import { PktBuf } from '../core/wire/pktbuf';
import { parseServerError } from '../core/wire/reader';

const { EAGAIN, EPROTO, ETIMEDOUT } = constants.errno;
/** The kernel's limit on this user's descriptors in flight is reached; sending works again once some are received. */
export const ETOOMANYREFS = 109;
const RETRY_MS = 1;

/** Least room for one receive. A sender attaches each batch of descriptors to fewer bytes than this. */
const RECV_ROOM = 256 * 1024;
/** Longest message: the record of one connection with its unsent output. */
const MESSAGE_MAX = 512 * 1024 * 1024;
const FOR_READ = 0;
const FOR_WRITE = 1;

/**
 * Sends all bytes, waiting for the receiver where necessary.
 * @param fds sent with the first byte
 * @param stallMs longest time without progress
 * @returns 0, or the errno (> 0) of what failed
 */
export function sendAll(socket: number, bytes: Uint8Array, fds: number[], stallMs: number): number {
  let sent = 0;
  let progress = readClock();
  while (sent < bytes.length) {
    const res = native.sendFds(socket, sent === 0 ? bytes : bytes.subarray(sent), sent === 0 ? fds : []);
    if (res > 0) {
      sent += res;
      progress = readClock();
      continue;
    }
    if (res !== -ETOOMANYREFS && res !== -EAGAIN) return res === 0 ? ETIMEDOUT : -res;
    const leftMs = stallMs - ((readClock() - progress) * 1000) / USEC;
    if (leftMs <= 0) return ETIMEDOUT;
    // no event reports that the kernel accepts descriptors again
    if (res === -ETOOMANYREFS) native.sleepMs(RETRY_MS);
    else if (native.pollFd(socket, FOR_WRITE, Math.ceil(leftMs)) < 0) return EPROTO;
  }
  return 0;
}

/**
 * The records of an old process let in any client that it likes, so it must be of the same user. The kernel tells who has
 * opened the listening socket: this may also be root, for a service manager, or before a change of user.
 * @returns the id of another user; null if the old process may be trusted
 */
export function foreignUid(socket: number): number | null {
  const uid = native.peerCred(socket)?.[0] ?? 0;
  return uid === 0 || uid === process.getuid?.() ? null : uid;
}

/** One message: its type byte and its body in `buf[off, end)`, valid until the next call of next(). */
export interface ChannelMessage {
  type: number;
  buf: Buffer;
  off: number;
  end: number;
}

/** The new process's end of the connection. */
export class Channel {
  readonly socket: number;
  /** received descriptors, in order */
  readonly fds: number[] = [];
  /** received and not yet returned: `buf[pos, end)` */
  private buf: Buffer = Buffer.alloc(2 * RECV_ROOM);
  private pos = 0;
  private end = 0;

  /** @param socket descriptor of a connected Unix socket; the channel owns it from now on */
  constructor(socket: number) {
    this.socket = socket;
  }

  /** Sends a query. @returns 0 or the errno */
  query(sql: string, stallMs: number): number {
    const pkt = new PktBuf();
    writeQuery(pkt, sql);
    return sendAll(this.socket, pkt.written(), [], stallMs);
  }

  /**
   * Waits for the next message.
   * @param timeoutMs longest time without a byte
   * @returns null at the end of the connection, or the errno (> 0) of what failed
   */
  next(timeoutMs: number): ChannelMessage | null | number {
    for (;;) {
      const left = this.end - this.pos;
      if (left >= NEW_HEADER_LEN) {
        const length = this.buf.readUInt32BE(this.pos + 1) + 1;
        if (length < NEW_HEADER_LEN || length > MESSAGE_MAX) return EPROTO;
        if (left >= length) {
          const off = this.pos;
          this.pos += length;
          return { type: this.buf[off] as number, buf: this.buf, off: off + NEW_HEADER_LEN, end: off + length };
        }
      }
      const res = this.receive(timeoutMs);
      if (res !== 0) return res < 0 ? null : res;
    }
  }

  /** The other process can send nothing more from now on; bytes it has already sent can still be read. */
  refuseMore(): void {
    native.refuseMore(this.socket);
  }

  close(): void {
    this.buf.fill(0);
    native.closeFd(this.socket);
  }

  /** Makes room behind the buffered bytes. A long message that arrives in many pieces is copied about twice in all. */
  private makeRoom(more: number): void {
    if (this.end + more <= this.buf.length) return;
    const old = this.buf;
    const left = this.end - this.pos;
    if (left + more > old.length || left > old.length / 2) this.buf = Buffer.alloc(Math.max(left + more, 2 * left));
    old.copy(this.buf, 0, this.pos, this.end);
    if (this.buf === old) old.fill(0, left, this.end);
    else old.fill(0);
    this.pos = 0;
    this.end = left;
  }

  /** @returns 0 after receiving bytes, -1 at the end of the connection, or an errno */
  private receive(timeoutMs: number): number {
    for (;;) {
      this.makeRoom(RECV_ROOM);
      const { result, fds } = native.recvFds(this.socket, this.buf.subarray(this.end));
      if (result > 0) {
        this.end += result;
        for (const fd of fds) this.fds.push(fd);
        return 0;
      }
      if (result === 0) return -1;
      if (result !== -EAGAIN) return -result;
      const ready = native.pollFd(this.socket, FOR_READ, timeoutMs);
      if (ready <= 0) return ready === 0 ? ETIMEDOUT : -ready;
    }
  }
}

/** The message field of an ErrorResponse. */
export function errorText(msg: ChannelMessage): string {
  return parseServerError(msg.buf, msg.off, msg.end).msg ?? 'unknown error';
}
