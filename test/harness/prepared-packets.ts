/*
 * Packets about prepared statements, and short exchanges made of them.
 */

import { errorIn } from './answers';
import { cstring, int16, int32, letters, message, type RawClient, rowValues } from './raw-client';

export const SYNC = message('S');
export const FLUSH = message('H');
export const EXECUTE = message('E', cstring(''), int32(0));

export function parse(name: string, sql: string, types: number[] = []): Buffer {
  return message('P', cstring(name), cstring(sql), int16(types.length), ...types.map(int32));
}

export function bind(name: string, values: (string | Buffer)[] = [], portal = ''): Buffer {
  const columns = values.flatMap((value) => {
    const bytes = typeof value === 'string' ? Buffer.from(value, 'latin1') : value;
    return [int32(bytes.length), bytes];
  });
  return message('B', cstring(portal), cstring(name), int16(0), int16(values.length), ...columns, int16(0));
}

export function describeStatement(name: string): Buffer {
  return message('D', Buffer.from('S'), cstring(name));
}

export function close(name: string): Buffer {
  return message('C', Buffer.from('S'), cstring(name));
}

/** Sends Bind, Execute and Sync of a named statement. @returns the first value, or the error's text */
export async function use(client: RawClient, name: string, values: string[] = []): Promise<string | null> {
  await client.send(bind(name, values), EXECUTE, SYNC);
  const answer = await client.until('Z');
  const row = answer.find((msg) => msg.type === 'D');
  return row === undefined ? (errorIn(answer)?.M ?? null) : (rowValues(row)[0] ?? null);
}

export async function prepare(client: RawClient, name: string, sql: string): Promise<string> {
  await client.send(parse(name, sql), SYNC);
  return letters(await client.until('Z'));
}

/** The statement names on the server of this client's next transaction. */
export async function onServer(client: RawClient): Promise<string[]> {
  const answer = await client.query('SELECT name FROM pg_prepared_statements ORDER BY prepare_time, name');
  return answer.filter((msg) => msg.type === 'D').map((msg) => rowValues(msg)[0] ?? '');
}
