/*
 * The records of a handover, as a new process gets them.
 */

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { user } from '../harness';
import { cstring, message, type RawClient } from './raw-client';
import type { RebootChain } from './reboot-chain';
import { connectAs } from './relay';

/** Logs in to the console of the running process, as a new process does. */
async function connectToOld(chain: RebootChain): Promise<RawClient> {
  const process = await connectAs(user, chain.socketPath, join(chain.dir, `relay${chain.relays++}`));
  assert.equal((await process.login({ user: 'pgbouncer', database: 'pgbouncer' })).at(-1)?.type, 'Z');
  return process;
}

/**
 * A new process that asks for that format, and has to wait for the ends of transactions.
 * @returns its connection, and what reads the records up to the next one of a kind
 */
export async function waitingProcess(
  chain: RebootChain,
  format: number,
): Promise<{ next: RawClient; recordUntil: (kind: string) => Promise<void> }> {
  const next = await connectToOld(chain);
  const recordUntil = async (kind: string): Promise<void> => {
    while (!(await next.until('d')).at(-1)?.body.includes(`{"k":"${kind}"`));
  };
  await next.sendMessage('Q', Buffer.from(`HANDOVER ${format};\0`));
  await recordUntil('aheadEnd');
  await next.sendMessage('Q', Buffer.from('HANDOVER READY;\0'));
  await recordUntil('wait');
  return { next, recordUntil };
}

/**
 * The records that a process gets which asks for that format and then goes away.
 * @param between called before the sockets are frozen
 * @param along a command that is sent together with HANDOVER
 */
export async function recordsOf(
  chain: RebootChain,
  format: number,
  between: (process: RawClient) => Promise<unknown> = async () => {},
  along = '',
): Promise<{ ahead: string[]; frozen: string[] }> {
  const process = await connectToOld(chain);
  const text = (body: Buffer): string => body.toString('latin1', 4, 4 + body.readUInt32BE(0));
  const ahead: string[] = [];
  const commands = [`HANDOVER ${format};`, along].filter((sql) => sql !== '');
  await process.send(...commands.map((sql) => message('Q', cstring(sql))));
  while (!ahead.at(-1)?.includes('"aheadEnd"')) {
    const record = (await process.until('d')).at(-1);
    ahead.push(text(record?.body ?? Buffer.alloc(4)));
  }
  await between(process);
  await process.sendMessage('Q', Buffer.from('HANDOVER READY;\0'));
  const frozen = (await process.until('Z')).filter((msg) => msg.type === 'd').map((msg) => text(msg.body));
  await process.destroy();
  await chain.now.log.wait(/handover failed, resuming work/);
  return { ahead, frozen };
}
