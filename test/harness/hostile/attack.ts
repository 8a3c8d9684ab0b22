/*
 * How the hostile test delivers its bytes: one connection a case, whole, in pieces or byte by byte, ended politely or
 * not. And how it looks at what came back.
 */

import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { type NetConnectOpts, connect as netConnect, type Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import { withTimeout } from '../../harness';
import type { Target } from '../raw-client';
import type { Random } from './random';

/** Longer texts are not sent byte by byte. */
const BYTEWISE_MAX = 80;
/** No message of a test's answers is as long as this. */
const ANSWER_MAX = 8 * 1024 * 1024;
const LETTERS = new Set('RKZSENTDCI123ns tGHWcdAVv');

/** Closes with a reset where possible: not with TLS, on Unix sockets, or on a socket that Node is already shutting down. */
export function reset(socket: Socket): void {
  if (socket instanceof TLSSocket || socket.writableEnded || socket.remoteAddress === undefined) socket.destroy();
  else socket.resetAndDestroy();
}

const nextTurn = () => new Promise<void>((wake) => setImmediate(wake));

interface Attack {
  target: Target;
  /** sent first; the bytes follow when ReadyForQuery, or a request for a password, has come */
  login?: Buffer;
  bytes: Buffer;
  random: Random;
}

/** Writes the bytes in a randomly chosen way. */
async function deliver(socket: Socket, bytes: Buffer, random: Random): Promise<void> {
  if (bytes.length === 0) return;
  const way = random.below(8);
  if (way > 1 || bytes.length === 1) {
    socket.write(bytes);
    return;
  }
  const step = way === 0 && bytes.length <= BYTEWISE_MAX ? 1 : Math.ceil(bytes.length / random.between(2, 5));
  for (let at = 0; at < bytes.length && !socket.destroyed; at += step) {
    socket.write(bytes.subarray(at, at + step));
    await nextTurn();
  }
}

/** True if the pooler now waits for a query or for a password. */
function loginAnswered(received: Buffer): boolean {
  // an AuthenticationRequest other than Ok is the last message
  if (received[0] === 0x52 && received.length >= 9) if (received.readInt32BE(5) !== 0) return true;
  // ReadyForQuery has 6 bytes and is the last message
  return received.length >= 6 && received[received.length - 6] === 0x5a;
}

/**
 * Opens a connection, sends the bytes, closes the connection, and waits until it has ended.
 * @returns all bytes received
 * @throws if the pooler does not close the connection
 */
export async function attack({ target, login, bytes, random }: Attack): Promise<Buffer> {
  const where = 'path' in target ? target : { host: '127.0.0.1', ...target };
  const socket = netConnect({ ...where, allowHalfOpen: true, noDelay: true } as NetConnectOpts);
  const chunks: Buffer[] = [];
  let wake = () => {};
  socket.on('data', (chunk: Buffer) => {
    chunks.push(chunk);
    wake();
  });
  let broken: NodeJS.ErrnoException | null = null;
  socket.on('error', (err) => {
    broken = err;
  });
  const closed = new Promise<void>((settle) => socket.once('close', () => settle()));
  socket.on('end', () => socket.end());
  const act = async (): Promise<void> => {
    if (login !== undefined) {
      socket.write(login);
      await Promise.race([
        closed,
        new Promise<void>((settle) => {
          wake = () => {
            if (loginAnswered(Buffer.concat(chunks))) settle();
          };
        }),
      ]);
    }
    await deliver(socket, bytes, random);
    if (random.one(4)) reset(socket);
    else socket.end();
    await closed;
  };
  try {
    await withTimeout(act(), () => `the end of a connection, ${Buffer.concat(chunks).length} bytes received`);
  } finally {
    socket.destroy();
  }
  const code = (broken as NodeJS.ErrnoException | null)?.code;
  assert.ok(code !== 'ECONNREFUSED' && code !== 'ENOENT', `the pooler does not listen: ${code}`);
  return Buffer.concat(chunks);
}

/** Checks for a sequence of whole messages, with possible one-byte refusals of encryption, and a possibly cut end. */
export function checkAnswer(received: Buffer): void {
  for (let at = 0; at + 5 <= received.length; ) {
    const letter = String.fromCharCode(received[at] as number);
    // 'N' = no encryption; as a NoticeResponse it has a length behind it
    if (letter === 'N' && received[at + 1] !== 0) {
      at++;
      continue;
    }
    const length = received.readUInt32BE(at + 1);
    const sane = LETTERS.has(letter) && length >= 4 && length < ANSWER_MAX;
    assert.ok(sane, `a broken message came at byte ${at}: ${received.subarray(at, at + 40).toString('hex')}`);
    at += 1 + length;
  }
}

/** Runs numbered cases, some at once; a failure names its case. */
export async function eachCase(count: number, atOnce: number, one: (index: number) => Promise<void>): Promise<void> {
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < count) {
      const index = next++;
      try {
        await one(index);
      } catch (err) {
        next = count;
        throw new Error(`case ${index}: ${err instanceof Error ? err.message : String(err)}`, { cause: err });
      }
    }
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
}

/** Resources of a process, as reported by the kernel. */
export interface Holding {
  descriptors: number;
  /** resident memory, kB */
  rssKb: number;
}

export function holding(pid: number): Holding {
  const status = readFileSync(`/proc/${pid}/status`, 'latin1');
  return {
    descriptors: readdirSync(`/proc/${pid}/fd`).length,
    rssKb: Number(/^VmRSS:\s+(\d+) kB/m.exec(status)?.[1]),
  };
}

/** Rows of SHOW LISTS as an object. The peaks, free_clients and free_servers, are left out: they only grow. */
export function lists(rows: Record<string, string | number | null>[]): Record<string, number> {
  const entries = rows.map((row) => [String(row.list), Number(row.items)] as const);
  return Object.fromEntries(entries.filter(([name]) => !name.startsWith('free_')));
}
