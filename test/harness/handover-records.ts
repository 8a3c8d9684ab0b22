/*
 * The records of a handover, as a new process gets them that then goes away.
 */

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { user } from '../harness';
import type { RebootChain } from './reboot-chain';
import { connectAs } from './relay';

/**
 * The records that a process gets which asks for that format and then goes away.
 * @param between called before the sockets are frozen
 */
export async function recordsOf(
  chain: RebootChain,
  format: number,
  between: () => Promise<void> = async () => {},
): Promise<{ ahead: string[]; frozen: string[] }> {
  const process = await connectAs(user, chain.socketPath, join(chain.dir, `relay${chain.relays++}`));
  assert.equal((await process.login({ user: 'pgbouncer', database: 'pgbouncer' })).at(-1)?.type, 'Z');
  const text = (body: Buffer): string => body.toString('latin1', 4, 4 + body.readUInt32BE(0));
  const ahead: string[] = [];
  await process.sendMessage('Q', Buffer.from(`HANDOVER ${format};\0`));
  while (!ahead.at(-1)?.includes('"aheadEnd"')) {
    const record = (await process.until('d')).at(-1);
    ahead.push(text(record?.body ?? Buffer.alloc(4)));
  }
  await between();
  await process.sendMessage('Q', Buffer.from('HANDOVER READY;\0'));
  const frozen = (await process.until('Z')).filter((msg) => msg.type === 'd').map((msg) => text(msg.body));
  await process.destroy();
  await chain.now.log.wait(/handover failed, resuming work/);
  return { ahead, frozen };
}
