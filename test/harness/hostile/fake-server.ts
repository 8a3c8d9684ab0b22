/*
 * A server that breaks the protocol. The name of the requested database selects the case, so that each case has a pool
 * of its own; hostile.test.ts defines the cases.
 */

import { createServer, type Server, type Socket } from 'node:net';
import { cstring, int16, int32, message, SSL_REQUEST } from '../raw-client';
import { reset } from './attack';
import type { Random } from './random';
import { LENGTHS } from './startups';

const authentication = (code: number, ...rest: Buffer[]) => message('R', int32(code), ...rest);
const parameter = (name: string, value: string) => message('S', cstring(name), cstring(value));
export const READY = message('Z', Buffer.from('I'));

/** The messages of a successful login. */
export const WELCOME = Buffer.concat([
  authentication(0),
  parameter('server_version', '15.0'),
  parameter('client_encoding', 'UTF8'),
  parameter('DateStyle', 'ISO, MDY'),
  parameter('TimeZone', 'UTC'),
  parameter('standard_conforming_strings', 'on'),
  message('K', int32(4711), int32(42)),
  READY,
]);

/** The answer to a query: one row of one text. */
export function oneRow(text: string): Buffer {
  const column = [cstring('token'), int32(0), int16(0), int32(25), int16(0xffff), int32(-1), int16(0)];
  return Buffer.concat([
    message('T', int16(1), ...column),
    message('D', int16(1), int32(text.length), Buffer.from(text)),
    message('C', cstring('SELECT 1')),
    READY,
  ]);
}

function errorResponse(...fields: string[]): Buffer {
  return message('E', ...fields.map(cstring), Buffer.alloc(1));
}

/** The answer to unexpected connections. */
export const NO_DATABASE = errorResponse('SFATAL', 'C3D000', 'Mdatabase does not exist');

type Maker = (random: Random) => Buffer;

const FRAMES: readonly Maker[] = [
  (r) => r.bytes(r.between(1, 300)),
  (r) => Buffer.alloc(r.between(1, 3000)),
  (r) => Buffer.alloc(r.between(1, 3000), 0xff),
  (r) => message(String.fromCharCode(r.below(256)), r.bytes(r.below(100))),
  (r) => Buffer.concat([Buffer.from([r.below(256)]), int32(r.pick(LENGTHS)), r.bytes(r.below(100))]),
  (r) => Buffer.concat([Buffer.from(r.pick([...'RSKZENTDCdAGHW'])), int32(r.pick(LENGTHS)), r.bytes(r.below(2000))]),
  (r) => message('S', r.bytes(r.below(60))),
  (r) => message('S', Buffer.from(r.text(r.below(60)), 'latin1')),
  (r) => message('E', r.bytes(r.below(60))),
  (r) => errorResponse('SFATAL', `C${r.text(5)}`, `M${r.text(r.below(4000))}`),
  (r) => message('N', r.bytes(r.below(60))),
  (r) => message('Z', r.bytes(r.below(3))),
  () => Buffer.alloc(0),
];

const LOGINS: readonly Maker[] = [
  ...FRAMES,
  (r) => r.mutate(WELCOME),
  (r) => r.mutate(WELCOME),
  (r) => WELCOME.subarray(0, r.below(WELCOME.length)),
  (r) => message('R', r.bytes(r.below(8))),
  (r) => authentication(r.pick([1, 2, 4, 6, 7, 8, 9, 13, 0xffff_ffff]), r.bytes(r.below(20))),
  (r) => authentication(5, r.bytes(r.below(4))),
  (r) => authentication(5, r.bytes(4)),
  () => authentication(3),
  (r) => authentication(10, Buffer.from(r.text(r.below(40)), 'latin1')),
  () => authentication(10, cstring('SCRAM-SHA-1'), Buffer.alloc(1)),
  () => authentication(10, cstring('SCRAM-SHA-256'), Buffer.alloc(1)),
  (r) => authentication(11, r.bytes(r.below(60))),
  (r) => authentication(12, r.bytes(r.below(60))),
  (r) =>
    Buffer.concat([
      authentication(10, cstring('SCRAM-SHA-256'), Buffer.alloc(1)),
      authentication(11, Buffer.from(r.text(r.below(60)), 'latin1')),
      authentication(12, Buffer.from(r.text(r.below(60)), 'latin1')),
    ]),
  (r) => Buffer.concat([authentication(0), message('K', r.bytes(r.below(8)))]),
  (r) => Buffer.concat([authentication(0), message('K', r.bytes(r.between(9, 300))), READY]),
  () => errorResponse('SFATAL', 'C57P03', 'Mthe database system is starting up'),
  () => errorResponse(),
  () => Buffer.concat([authentication(0), READY, READY, READY]),
  () => Buffer.concat([WELCOME, WELCOME]),
  (r) =>
    Buffer.concat([
      authentication(0),
      ...Array.from({ length: r.between(1, 500) }, () => parameter(r.text(20), r.text(90))),
      READY,
    ]),
];

const ANSWERS: readonly Maker[] = [
  ...FRAMES,
  (r) => r.mutate(oneRow('answer')),
  (r) => r.mutate(oneRow('answer')),
  (r) => oneRow('answer').subarray(0, r.below(60)),
  (r) => Buffer.concat([oneRow('answer'), r.bytes(r.between(1, 60))]),
  () => Buffer.concat([oneRow('answer'), oneRow('wrong')]),
  () => Buffer.concat([READY, READY, READY]),
  () => message('Z', Buffer.from('T')),
  () => message('Z', Buffer.from('?')),
  (r) => Buffer.concat([message('D', int16(1), int32(r.pick(LENGTHS)), r.bytes(30)), READY]),
  () => message('G', Buffer.alloc(3)),
  () => Buffer.concat([message('G', Buffer.alloc(3)), READY]),
  () => Buffer.concat([message('W', Buffer.alloc(3)), message('d', Buffer.alloc(100))]),
  () => Buffer.concat([message('H', Buffer.alloc(3)), message('c'), message('c'), READY]),
  () => message('C', Buffer.alloc(0)),
  (r) => Buffer.concat([message(r.pick([...'123nstI'])), READY]),
  (r) => message('A', r.bytes(r.below(50))),
  () => errorResponse('SERROR', 'C22012', 'Mdivision by zero'),
  () => Buffer.concat([parameter('client_encoding', 'x'.repeat(100_000)), oneRow('answer')]),
  () => Buffer.concat([Buffer.from('S'), int32(300_000), Buffer.alloc(250_000, 65)]),
  () => message('R', int32(0)),
];

export const hostileLogin: Maker = (random) => random.pick(LOGINS)(random);
export const hostileAnswer: Maker = (random) => random.pick(ANSWERS)(random);

const NO_ENCRYPTION = Buffer.from('N');

/** An invalid answer to an encryption request. */
export function hostileSslAnswer(random: Random): Buffer {
  const record = Buffer.from([22, 3, 3, random.below(256), random.below(256)]);
  const makers: readonly Maker[] = [
    (r) => Buffer.concat([NO_ENCRYPTION, r.bytes(r.between(1, 60))]),
    (r) => Buffer.concat([Buffer.from('S'), r.bytes(r.between(1, 300))]),
    (r) => Buffer.concat([Buffer.from('S'), record, r.bytes(r.below(300))]),
    (r) => r.bytes(r.between(1, 20)),
    () => NO_DATABASE,
    () => WELCOME,
  ];
  return random.pick(makers)(random);
}

/** How the connection ends after the hostile bytes. */
export type Ending = 'fin' | 'rst' | 'silence';

/** One connection of the pooler to this server, after its startup packet. */
export interface Visit {
  socket: Socket;
  database: string;
  /** protocol version in the startup packet */
  version: number;
  /** the next whole message's letter and body, or null at the end of the connection */
  next(): Promise<{ type: string; body: Buffer } | null>;
}

/** Ends a visit in that way. */
export function finish(socket: Socket, ending: Ending): void {
  if (ending === 'fin') socket.end();
  else if (ending === 'rst') reset(socket);
}

/** Takes one message off the front if it is complete. */
function take(buffered: Buffer, headLength: number): Buffer | null {
  if (buffered.length < headLength + 4) return null;
  const length = buffered.readInt32BE(headLength) + headLength;
  return buffered.length < length ? null : buffered.subarray(0, length);
}

function databaseOf(startup: Buffer): string {
  const words = startup.toString('latin1', 8).split('\0');
  const at = words.findIndex((word, index) => index % 2 === 0 && word === 'database');
  return words[at + 1] ?? '';
}

export class FakeServer {
  private readonly sockets = new Set<Socket>();
  /** the answer to an encryption request; only after 'N' the connection continues */
  sslAnswer: () => Buffer = () => NO_ENCRYPTION;

  private constructor(
    private readonly server: Server,
    readonly port: number,
  ) {}

  /** @param serve called for every connection after its startup packet */
  static async start(serve: (visit: Visit) => Promise<void>): Promise<FakeServer> {
    const server = createServer({ allowHalfOpen: true, noDelay: true });
    await new Promise<void>((settle) => server.listen(0, '127.0.0.1', settle));
    const address = server.address();
    const fake = new FakeServer(server, typeof address === 'object' && address !== null ? address.port : 0);
    server.on('connection', (socket) => fake.accept(socket, serve));
    return fake;
  }

  private accept(socket: Socket, serve: (visit: Visit) => Promise<void>): void {
    this.sockets.add(socket);
    let buffered: Buffer = Buffer.alloc(0);
    let over = false;
    let wake = () => {};
    const ended = () => {
      over = true;
      wake();
    };
    socket.on('data', (chunk: Buffer) => {
      buffered = Buffer.concat([buffered, chunk]);
      wake();
    });
    // the pooler has closed its side
    socket.on('end', () => socket.end());
    socket.on('end', ended);
    socket.on('error', ended);
    socket.on('close', () => {
      this.sockets.delete(socket);
      ended();
    });
    const message = async (headLength: number): Promise<Buffer | null> => {
      for (;;) {
        const whole = take(buffered, headLength);
        if (whole !== null) {
          buffered = buffered.subarray(whole.length);
          return whole;
        }
        if (over) return null;
        await new Promise<void>((settle) => {
          wake = settle;
        });
      }
    };
    const next: Visit['next'] = async () => {
      const whole = await message(1);
      return whole === null ? null : { type: whole.toString('latin1', 0, 1), body: whole.subarray(5) };
    };
    const run = async (fake: FakeServer) => {
      let startup = await message(0);
      if (startup?.readInt32BE(4) === SSL_REQUEST) {
        socket.write(fake.sslAnswer());
        startup = await message(0);
      }
      if (startup !== null) {
        await serve({ socket, database: databaseOf(startup), version: startup.readInt32BE(4), next });
      }
    };
    void run(this);
  }

  async stop(): Promise<void> {
    for (const socket of this.sockets) socket.destroy();
    await new Promise<void>((settle) => this.server.close(() => settle()));
  }
}
