/*
 * Both ends of many endless results, each in a process of its own, which streams.ts forks. The server answers the query
 * `stream` without end and every other query at once. The clients read as fast as they can.
 *
 *     server              reports its port
 *     readers PORT COUNT  reports on request what each client received in the period
 */

import { connect, createServer, type Socket } from 'node:net';

const ROW_BYTES = 65_000;
const ROWS_AT_ONCE = 4;
/** Connections that a client process opens at a time, so that no listen queue overflows. */
const AT_ONCE = 50;
const DATABASE = 'streams';

function packet(letter: string, body: Buffer): Buffer {
  const head = Buffer.alloc(5);
  head.write(letter);
  head.writeInt32BE(body.length + 4, 1);
  return Buffer.concat([head, body]);
}

const zero = (bytes: number): Buffer => Buffer.alloc(bytes);
const WELCOME = Buffer.concat([
  packet('R', zero(4)),
  packet('S', Buffer.from('server_version\x0015.0\0')),
  packet('K', Buffer.alloc(8, 1)),
  packet('Z', Buffer.from('I')),
]);
const COLUMN = packet('T', Buffer.from('\0\x01a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0', 'latin1'));
const rowHead = zero(6);
rowHead.writeInt16BE(1);
rowHead.writeInt32BE(ROW_BYTES, 2);
const ROWS = Buffer.concat(
  new Array(ROWS_AT_ONCE).fill(packet('D', Buffer.concat([rowHead, Buffer.alloc(ROW_BYTES, 120)]))),
);
const ANSWER = Buffer.concat([packet('C', Buffer.from('SELECT 0\0')), packet('Z', Buffer.from('I'))]);

function stream(socket: Socket): void {
  socket.write(COLUMN);
  const more = () => {
    while (!socket.destroyed && socket.write(ROWS));
  };
  socket.on('drain', more);
  more();
}

function serve(socket: Socket): void {
  socket.setNoDelay(true);
  socket.on('error', () => socket.destroy());
  socket.once('data', () => {
    socket.write(WELCOME);
    // each query arrives in one piece, because clients wait for each answer
    socket.on('data', (bytes) => {
      if (bytes.includes('stream')) stream(socket);
      else if (bytes[0] === 0x51) socket.write(ANSWER);
    });
  });
}

function runServer(): void {
  const server = createServer(serve);
  server.listen(0, '127.0.0.1', 1000, () => process.send?.((server.address() as { port: number }).port));
}

function startReader(port: number, received: number[], index: number): Promise<void> {
  const socket = connect(port, '127.0.0.1');
  const parameters = Buffer.from(`\0\x03\0\0user\0postgres\0database\0${DATABASE}\0\0`, 'latin1');
  const head = zero(4);
  head.writeInt32BE(parameters.length + 4);
  socket.write(Buffer.concat([head, parameters, packet('Q', Buffer.from('stream\0'))]));
  return new Promise((started, failed) => {
    socket.once('error', failed);
    socket.once('close', () => failed(new Error('a stream ended')));
    socket.on('data', (bytes) => {
      received[index] = (received[index] as number) + bytes.length;
      started();
    });
  });
}

async function runReaders(port: number, count: number): Promise<void> {
  const received = new Array<number>(count).fill(0);
  for (let at = 0; at < count; at += AT_ONCE) {
    const group = Array.from({ length: Math.min(AT_ONCE, count - at) }, (_, n) => startReader(port, received, at + n));
    await Promise.all(group);
  }
  process.on('message', () => {
    process.send?.(received.slice());
    received.fill(0);
  });
  process.send?.('ready');
}

// the parent process has exited
process.on('disconnect', () => process.exit(0));
const [role, port, count] = process.argv.slice(2);
if (role === 'server') {
  runServer();
} else {
  runReaders(Number(port), Number(count)).catch((err: Error) => {
    console.error(err.message);
    process.exit(1);
  });
}
