/*
 * A name server for tests: answers A, AAAA and SOA queries over UDP from a table that the test can change, or sends
 * invalid answers.
 */

import { createSocket, type RemoteInfo, type Socket } from 'node:dgram';
import { writeFileSync } from 'node:fs';
import { isIPv4 } from 'node:net';
import { join } from 'node:path';

const TYPES: Readonly<Record<number, 'A' | 'SOA' | 'AAAA'>> = { 1: 'A', 6: 'SOA', 28: 'AAAA' };
export const SERVFAIL = 2;
const NXDOMAIN = 3;

export interface Question {
  name: string;
  type: 'A' | 'SOA' | 'AAAA' | 'other';
  /** id, flags and counts of the query; then the question, which an answer repeats */
  packet: Buffer;
}

/** The entry of a name; names without an entry do not exist. */
interface Entry {
  addresses?: string[];
  serial?: number;
  /** instead of an answer */
  rcode?: number;
}

/** Makes the packets to send instead of the right answer. */
type Trick = (question: Question, right: Buffer) => Buffer[];

export function nameBytes(name: string): Buffer {
  const labels = name.split('.').filter((label) => label !== '');
  return Buffer.concat([
    ...labels.flatMap((label) => [Buffer.from([label.length]), Buffer.from(label)]),
    Buffer.from([0]),
  ]);
}

function parseQuestion(packet: Buffer): Question {
  const labels: string[] = [];
  let at = 12;
  for (let length = packet[at] as number; length > 0; length = packet[at] as number) {
    labels.push(packet.toString('latin1', at + 1, at + 1 + length));
    at += 1 + length;
  }
  const type = TYPES[packet.readUInt16BE(at + 1)] ?? 'other';
  return { name: labels.join('.').toLowerCase(), type, packet: packet.subarray(0, at + 5) };
}

function addressBytes(address: string): Buffer {
  if (isIPv4(address)) return Buffer.from(address.split('.').map(Number));
  const [head, tail] = address.split('::').map((part) => part.split(':').filter((word) => word !== '')) as [
    string[],
    string[]?,
  ];
  const words = tail === undefined ? head : [...head, ...Array(8 - head.length - tail.length).fill('0'), ...tail];
  const bytes = Buffer.alloc(16);
  for (const [i, word] of words.entries()) bytes.writeUInt16BE(Number.parseInt(word, 16), 2 * i);
  return bytes;
}

/** A record about the name in the question. */
export function record(type: number, data: Buffer, ttl = 3600): Buffer {
  const head = Buffer.alloc(12);
  head.writeUInt16BE(0xc00c, 0);
  head.writeUInt16BE(type, 2);
  head.writeUInt16BE(1, 4);
  head.writeUInt32BE(ttl, 6);
  head.writeUInt16BE(data.length, 10);
  return Buffer.concat([head, data]);
}

/** An answer to that question. */
export function reply({ packet }: Question, rcode: number, records: Buffer[], flags = 0x8580): Buffer {
  const bytes = Buffer.concat([packet, ...records]);
  bytes.writeUInt16BE(flags | rcode, 2);
  bytes.writeUInt16BE(1, 4);
  bytes.writeUInt16BE(records.length, 6);
  bytes.writeUInt32BE(0, 8);
  return bytes;
}

function soaData(serial: number): Buffer {
  const numbers = Buffer.alloc(20);
  numbers.writeUInt32BE(serial, 0);
  return Buffer.concat([nameBytes('ns.test'), nameBytes('admin.test'), numbers]);
}

export class NameServer {
  readonly names = new Map<string, Entry>();
  /** received queries, as `A one.test` */
  readonly asked: string[] = [];
  trick: Trick | null = null;

  private constructor(private readonly socket: Socket) {
    socket.on('message', (packet, from) => this.answer(parseQuestion(packet), from));
  }

  static async start(): Promise<NameServer> {
    const socket = createSocket('udp4');
    await new Promise<void>((settle) => socket.bind(0, '127.0.0.1', settle));
    return new NameServer(socket);
  }

  get address(): string {
    return `127.0.0.1:${this.socket.address().port}`;
  }

  /** A resolv.conf that names this server. */
  conf(dir: string, ...lines: string[]): string {
    const path = join(dir, 'resolv.conf');
    writeFileSync(path, [`nameserver ${this.address}`, ...lines, ''].join('\n'), { mode: 0o644 });
    return path;
  }

  /** Number of such queries. */
  count(question: string): number {
    return this.asked.filter((each) => each === question).length;
  }

  stop(): Promise<void> {
    return new Promise((settle) => this.socket.close(settle));
  }

  private answer(question: Question, from: RemoteInfo): void {
    this.asked.push(`${question.type} ${question.name}`);
    const right = this.rightAnswer(question);
    for (const packet of this.trick?.(question, right) ?? [right]) this.socket.send(packet, from.port, from.address);
  }

  private rightAnswer(question: Question): Buffer {
    const entry = this.names.get(question.name);
    if (entry === undefined) return reply(question, NXDOMAIN, []);
    if (entry.rcode !== undefined) return reply(question, entry.rcode, []);
    const { addresses = [], serial } = entry;
    const wanted = addresses.filter((address) => isIPv4(address) === (question.type === 'A'));
    if (question.type === 'A')
      return reply(
        question,
        0,
        wanted.map((each) => record(1, addressBytes(each))),
      );
    if (question.type === 'AAAA')
      return reply(
        question,
        0,
        wanted.map((each) => record(28, addressBytes(each))),
      );
    return reply(question, 0, serial === undefined || question.type !== 'SOA' ? [] : [record(6, soaData(serial))]);
  }
}
