/*
 * TLS as the simulation has it: a stream of records with numbers, without secrets. A record that is lost, sent twice, or sent
 * by a process that does not know how many came before is found by its number, as a real peer finds it by its key.
 *
 * Each end sends a hello, and then data; a close notice ends its direction. A record has a type, a number (4 bytes) and a
 * length (4 bytes).
 */

const HEADER = 9;
/** Longest data of a record. */
const DATA_MAX = 5000;
const NOTHING = Buffer.alloc(0);

const enum Type {
  HELLO = 72,
  DATA = 68,
  CLOSE = 67,
}

/** What one end has sent and received. */
interface State {
  sent: number;
  received: number;
  /** the data of the peer's hello: what the connection is like */
  kind: string;
  closed: boolean;
  input: string;
}

export class Records {
  private sent = 0;
  private received = 0;
  /** the peer has sent a close notice */
  closed = false;
  /** the data of the hello that was received, null before */
  kind: string | null = null;
  /** received bytes that are not read yet: the beginning of a record, or what follows a hello */
  private input: Buffer = NOTHING;
  /** records in both directions, in this process */
  traffic = 0;
  /** another process may own the connection */
  frozen = false;

  get established(): boolean {
    return this.kind !== null;
  }

  get inputLength(): number {
    return this.input.length;
  }

  private record(type: Type, data: Uint8Array): Buffer {
    const head = Buffer.alloc(HEADER);
    head[0] = type;
    head.writeUInt32BE(this.sent++, 1);
    head.writeUInt32BE(data.length, 5);
    this.traffic++;
    return Buffer.concat([head, data]);
  }

  hello(kind: string): Buffer {
    return this.record(Type.HELLO, Buffer.from(kind));
  }

  close(): Buffer {
    return this.record(Type.CLOSE, NOTHING);
  }

  /** The records for these bytes; one empty record for none. */
  seal(bytes: Uint8Array): Buffer {
    if (bytes.length <= DATA_MAX) return this.record(Type.DATA, bytes);
    const records: Buffer[] = [];
    for (let at = 0; at < bytes.length; at += DATA_MAX) {
      records.push(this.record(Type.DATA, bytes.subarray(at, at + DATA_MAX)));
    }
    return Buffer.concat(records);
  }

  receive(bytes: Uint8Array): void {
    this.input = this.input.length === 0 ? Buffer.from(bytes) : Buffer.concat([this.input, bytes]);
  }

  /**
   * Reads one record.
   * @returns its data, or null if no whole record is there
   * @throws Error if it is not the next one
   */
  next(): Buffer | null {
    const { input } = this;
    if (this.closed || input.length < HEADER) return null;
    const number = input.readUInt32BE(1);
    if (number !== this.received) throw new Error(`a record has number ${number} instead of ${this.received}`);
    const end = HEADER + input.readUInt32BE(5);
    if (input.length < end) return null;
    const data = input.subarray(HEADER, end);
    this.input = input.subarray(end);
    this.received++;
    this.traffic++;
    const type = input[0];
    if (type === Type.HELLO && this.kind === null) this.kind = data.toString();
    else if (type === Type.CLOSE && this.established) this.closed = true;
    else if (type !== Type.DATA || !this.established) throw new Error(`a record of type ${type}`);
    return type === Type.DATA ? data : NOTHING;
  }

  /** The data of all whole records. */
  open(): Buffer {
    const parts: Buffer[] = [];
    for (let data = this.next(); data !== null; data = this.next()) if (data.length > 0) parts.push(data);
    return parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts);
  }

  /** For another process. */
  export(): Buffer {
    const { sent, received, kind, closed } = this;
    const state: State = { sent, received, kind: kind ?? '', closed, input: this.input.toString('latin1') };
    return Buffer.from(JSON.stringify(state), 'latin1');
  }

  /** The connection of such bytes, frozen. */
  static import(bytes: Uint8Array): Records {
    const state = JSON.parse(Buffer.from(bytes).toString('latin1')) as State;
    const records = new Records();
    records.sent = state.sent;
    records.received = state.received;
    records.kind = state.kind;
    records.closed = state.closed;
    records.input = Buffer.from(state.input, 'latin1');
    records.frozen = true;
    return records;
  }
}
