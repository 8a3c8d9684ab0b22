/*
 * The vocabulary of the scenarios: each function makes one step that does the same on both sides. What the step brought
 * about (messages received, rows, exit codes) is what gets compared.
 */

import { chmodSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ADMIN_PASSWORD, ADMIN_USER, eventually, run } from '../test/harness';
import {
  cancelRequest,
  cstring,
  int16,
  int32,
  type Login,
  type Message,
  message,
  type RawClient,
  startupPacket,
} from '../test/harness/raw-client';
import { decode, type Item } from './decode';
import { maskLog } from './mask';
import type { Config, Side, Step } from './side';

/** How long an answer may take; longer than any timeout that a scenario sets. */
const ANSWER_MS_MAX = 8_000;

export function step(text: string, run: Step['run']): Step {
  return { text, run };
}

/** All up to the end of the connection, and that it ended. */
export async function untilClosed(client: RawClient): Promise<Item[]> {
  const messages = await client.until('', ANSWER_MS_MAX);
  return [...decode(messages), 'connection closed'];
}

/** All up to one of those letters; when the connection ends before, that is said. */
async function untilLetter(client: RawClient, types: string): Promise<Item[]> {
  const messages = await client.until(types, ANSWER_MS_MAX);
  const complete = types.includes(messages.at(-1)?.type ?? '-');
  return complete ? decode(messages) : [...decode(messages), 'connection closed'];
}

/* ---- clients ---- */

export function who(login: Login): string {
  const params = Object.entries(login.params ?? {}).map(([key, value]) => ` ${key}=${JSON.stringify(value)}`);
  const secret = login.password === undefined ? '' : ` with password "${login.password}"`;
  return `${login.user ?? 'postgres'} on ${login.database ?? 'postgres'}${secret}${params.join('')}`;
}

export async function loggedIn(client: RawClient, login: Login): Promise<Item[]> {
  const messages: Message[] = await client.login(login);
  if (messages.at(-1)?.type === 'Z') return decode(messages);
  return [...decode(messages), ...(await untilClosed(client))];
}

/** Connects over TCP and logs in, in whatever way the pooler asks for. */
export function login(name: string, login: Login = {}): Step {
  return step(`${name}: login ${who(login)}`, async (side) => loggedIn(await side.open(name), login));
}

/** The same over the Unix socket. */
export function loginUnix(name: string, login: Login = {}): Step {
  return step(`${name}: Unix login ${who(login)}`, async (side) => loggedIn(await side.open(name, true), login));
}

/** Logs in and says goodbye: for tables of logins. */
export function tryLogin(login: Login): Step {
  return step(`login ${who(login)}`, async (side) => {
    const client = await side.open('try');
    const items = await loggedIn(client, login);
    await client.end();
    return items;
  });
}

/** Connects and sends nothing. */
export function connect(name: string): Step {
  return step(`${name}: connect`, async (side) => {
    await side.open(name);
    return [];
  });
}

/** Connects, sends a startup packet with exactly those bytes and reads to the end. */
export function rawStartup(text: string, ...bytes: Buffer[]): Step {
  return step(`startup: ${text}`, async (side) => {
    const client = await side.open('raw');
    await client.send(...bytes);
    const items = await untilClosed(client);
    await client.destroy();
    return items;
  });
}

/** Connects and starts with that protocol version and those parameters; reads up to ReadyForQuery or the end. */
export function startWith(text: string, version: number, params: Record<string, string>): Step {
  return step(`startup: ${text}`, async (side) => {
    const client = await side.open('raw');
    await client.send(startupPacket(version, params));
    const items = await untilLetter(client, 'Z');
    await client.destroy();
    return items;
  });
}

/** SSLRequest or GSSENCRequest: the one-byte answers, on one connection. */
export function requests(name: string, ...codes: number[]): Step {
  return step(`${name}: requests ${codes.join(' ')}`, async (side) => {
    const client = side.clients.get(name) ?? (await side.open(name));
    const answers: string[] = [];
    for (const code of codes) answers.push(`answer ${await client.request(code)}`);
    return answers;
  });
}

/** Starts up on a connection that is already open. */
export function startup(name: string, login: Login = {}): Step {
  return step(`${name}: startup ${who(login)}`, (side) => loggedIn(side.client(name), login));
}

export function bye(...names: string[]): Step {
  return step(`${names.join(', ')}: goodbye`, async (side) => {
    for (const name of names) await side.client(name).end();
    return [];
  });
}

/** Goes away without goodbye. */
export function vanish(name: string): Step {
  return step(`${name}: vanish`, async (side) => {
    await side.client(name).destroy();
    return [];
  });
}

/* ---- queries ---- */

export function query(name: string, sql: string): Step {
  return step(`${name}: ${sql}`, async (side) => {
    const client = side.client(name);
    await client.sendMessage('Q', cstring(sql));
    return untilLetter(client, 'Z');
  });
}

/** Sends a query and does not wait for its answer. */
export function ask(name: string, sql: string): Step {
  return step(`${name}: asks ${sql}`, async (side) => {
    await side.client(name).sendMessage('Q', cstring(sql));
    return [];
  });
}

/** Sends those messages in one piece. */
export function send(name: string, text: string, ...bytes: Buffer[]): Step {
  return step(`${name}: sends ${text}`, async (side) => {
    await side.client(name).send(...bytes);
    return [];
  });
}

/** Reads up to and with one of those letters. */
export function receive(name: string, types = 'Z'): Step {
  return step(`${name}: receives up to ${types}`, (side) => untilLetter(side.client(name), types));
}

/** Reads to the end of the connection. */
export function closed(...names: string[]): Step {
  return step(`${names.join(', ')}: closed`, async (side) => {
    const items: Item[] = [];
    for (const name of names) items.push(...(await untilClosed(side.client(name))));
    return items;
  });
}

/** Sends those messages and reads up to ReadyForQuery. */
export function exchange(name: string, text: string, ...bytes: Buffer[]): Step {
  return step(`${name}: ${text}`, async (side) => {
    const client = side.client(name);
    await client.send(...bytes);
    return untilLetter(client, 'Z');
  });
}

/** A cancel request with the key of that client, or with a wrong one. */
export function cancel(name: string, wrongKey = false): Step {
  return step(`${name}: cancel request${wrongKey ? ' with a wrong key' : ''}`, async (side) => {
    const { backendPid, backendKey } = side.client(name);
    const key = wrongKey ? Buffer.from(backendKey.map((byte) => byte ^ 0xff)) : backendKey;
    await cancelRequest({ port: side.pooler.port }, backendPid, key);
    return [];
  });
}

/** The same, sent to the second pooler. */
export function cancelAtOther(name: string): Step {
  return step(`${name}: cancel request to the other pooler`, async (side) => {
    const { backendPid, backendKey } = side.client(name);
    await cancelRequest({ port: side.other?.port ?? 0 }, backendPid, backendKey);
    return [];
  });
}

/** Ends the server connection that the client is using, as a broken server would. */
export function killServer(name: string): Step {
  return step(`${name}: its server is killed`, async (side) => {
    const client = side.client(name);
    const answer = await client.query('SELECT pg_backend_pid()');
    const row = answer.find(({ type }) => type === 'D');
    const pid = Number(row?.body.toString('latin1', 6));
    await side.stage.cluster.killBackends(`pid = ${pid}`);
    return [];
  });
}

/* ---- extended protocol ---- */

export const parse = (name: string, sql: string): Buffer => message('P', cstring(name), cstring(sql), int16(0));
export const bind = (portal: string, statement: string, ...values: string[]): Buffer => {
  const params = values.map((value) => Buffer.concat([int32(value.length), Buffer.from(value, 'latin1')]));
  return message('B', cstring(portal), cstring(statement), int16(0), int16(values.length), ...params, int16(0));
};
export const describe = (kind: 'S' | 'P', name: string): Buffer => message('D', Buffer.from(kind), cstring(name));
export const execute = (portal: string, rowsMax = 0): Buffer => message('E', cstring(portal), int32(rowsMax));
export const closeObject = (kind: 'S' | 'P', name: string): Buffer => message('C', Buffer.from(kind), cstring(name));
export const sync = (): Buffer => message('S');
export const flush = (): Buffer => message('H');
export const simple = (sql: string): Buffer => message('Q', cstring(sql));

/* ---- console ---- */

/** The console connection that admin() and whenPool() share; its login is compared elsewhere. */
async function consoleOf(side: Side): Promise<RawClient> {
  const known = side.clients.get('console');
  if (known !== undefined) return known;
  // over the Unix socket: TLS is asked of nobody there
  const client = await side.open('console', true);
  await client.login({ user: ADMIN_USER, password: ADMIN_PASSWORD, database: 'pgbouncer' });
  return client;
}

/** A table of averages: what is in them depends on when the period began. */
function withoutNumbers(item: Item): Item {
  if (typeof item === 'string') return item;
  return { ...item, rows: item.rows.map(([first = null, ...rest]) => [first, ...rest.map(() => '#')]) };
}

/** A console command by an admin, on a connection that stays open. */
export function admin(command: string): Step {
  return step(`console: ${command}`, async (side) => {
    const client = await consoleOf(side);
    await client.sendMessage('Q', cstring(command));
    const items = await untilLetter(client, 'Z');
    return command.includes('STATS_AVERAGES') ? items.map(withoutNumbers) : items;
  });
}

/** SHOW CONFIG, of which only those settings count. */
export function showSettings(...keys: string[]): Step {
  return step(`console: settings ${keys.join(', ')}`, async (side) => {
    const items = decode(await (await consoleOf(side)).query('SHOW CONFIG'));
    return items.map((item) => {
      if (typeof item === 'string') return item;
      return { ...item, rows: item.rows.filter((row) => keys.includes(row[0] ?? '')) };
    });
  });
}

/** A console command whose answer comes later (PAUSE, SHUTDOWN): read it with receive('console') or closed('console'). */
export function adminAsk(command: string): Step {
  return step(`console: asks ${command}`, async (side) => {
    const client = await consoleOf(side);
    await client.sendMessage('Q', cstring(command));
    return [];
  });
}

async function poolColumn(client: RawClient, column: string, database: string): Promise<number> {
  const items = decode(await client.query('SHOW POOLS'));
  const table = items.find((item) => typeof item !== 'string');
  if (table === undefined || typeof table === 'string') return -1;
  const at = table.columns.findIndex(({ name }) => name === column);
  const rows = table.rows.filter((row) => row[0] === database);
  return rows.reduce((sum, row) => sum + Number(row[at]), 0);
}

/** Waits until SHOW POOLS says that of a database: for states that nobody is told of. */
export function whenPool(column: string, count: number, database = 'postgres'): Step {
  return step(`until ${database} has ${column} = ${count}`, async (side) => {
    const client = await consoleOf(side);
    const reached = async () => (await poolColumn(client, column, database)) === count;
    await eventually(`${column} = ${count} in SHOW POOLS`, reached, ANSWER_MS_MAX);
    return [];
  });
}

/* ---- process and files ---- */

/** Waits until the log says that; nothing is compared before the end. */
export function logSays(pattern: RegExp): Step {
  return step(`log says ${pattern}`, async (side) => {
    await side.pooler.logWait(pattern, 0, ANSWER_MS_MAX);
    return [];
  });
}

/** Waits until the log has said that so many times. */
export function logSaysTimes(pattern: RegExp, times: number): Step {
  return step(`log says ${pattern} ${times} times`, async (side) => {
    const reached = () => side.pooler.log.count(pattern) >= times;
    await eventually(`${pattern} ${times} times in the log`, reached, ANSWER_MS_MAX);
    return [];
  });
}

export function signal(name: NodeJS.Signals): Step {
  return step(name, async (side) => {
    side.pooler.signal(name);
    return [];
  });
}

/** A new process takes over, and the old one ends. The comparison's own console connection is closed before. */
export function reboot(): Step {
  return step('-R', async (side) => {
    await side.clients.get('console')?.end();
    side.clients.delete('console');
    const old = side.pooler;
    const next = old.beside(['-R']);
    await next.waitUp();
    side.succeed(next);
    const end = await old.expectEnd(ANSWER_MS_MAX);
    return [`the old process: exit ${end.code ?? end.signal}`];
  });
}

/** A new process that cannot take over, and ends. */
export function rebootThatFails(): Step {
  return step('-R that fails', async (side) => {
    const next = side.pooler.beside(['-R']);
    const end = await next.expectEnd(ANSWER_MS_MAX);
    return [`exit ${end.code ?? end.signal}`, ...maskLog(next.log.text, side.names)];
  });
}

/** The process ends by itself. */
export function ended(): Step {
  return step('the process ends', async (side) => {
    const end = await side.pooler.expectEnd(ANSWER_MS_MAX);
    side.endSeen = true;
    return [`exit ${end.code ?? end.signal}`];
  });
}

/** Changes the config on disk; RELOAD or SIGHUP is another step. Sections given replace the old ones. */
export function change(text: string, config: Config): Step {
  return step(`config: ${text}`, async (side) => {
    const filled = Object.entries(side.fillConfig(config)).filter(([, value]) => value !== undefined);
    side.pooler.rewrite(Object.fromEntries(filled));
    return [];
  });
}

/** Appends to the ini on disk. */
export function appendIni(text: string): Step {
  return step(`config: more lines ${JSON.stringify(text)}`, async (side) => {
    writeFileSync(side.pooler.iniPath, side.fill(text), { flag: 'a', encoding: 'latin1' });
    return [];
  });
}

/** Writes a file of the side's folder anew. */
export function rewriteFile(name: string, text: string, about = ''): Step {
  return step(`${name} is written anew${about === '' ? '' : `: ${about}`}`, async (side) => {
    side.write(name, text);
    return [];
  });
}

/** Takes a file of the pooler's folder away. */
export function removeFile(name: string): Step {
  return step(`${name} is removed`, async (side) => {
    rmSync(join(side.pooler.dir, name));
    return [];
  });
}

/** Lets time pass: only for showing that nothing happens. */
export function pause(ms: number): Step {
  return step(`${ms} ms pass`, async () => {
    await new Promise((wake) => setTimeout(wake, ms));
    return [];
  });
}

/** What a command line case wrote: log lines masked, usage texts under one name. */
function outputLines(side: Side, text: string, label: string): string[] {
  const name = `(?:\\S*/)?${side.program.program}`;
  const own = text.replace(new RegExp(`(^|^  |Try ")${name}(?=:| is | \\[OPTION| --help")`, 'gm'), '$1PROGRAM');
  return maskLog(own, side.names).map((line) => `${label}: ${line}`);
}

/**
 * Runs the program with those arguments to its end; `{ini}` in them names a file that holds `ini`, when given.
 * `asSelf` runs it as root where the comparison itself is root.
 */
export function command(args: string[], ini?: string, options: { asSelf?: boolean; text?: string } = {}): Step {
  const shown = options.text ?? args.join(' ');
  return step(`$ ${shown}`, async (side) => {
    const path = join(side.dir, 'case.ini');
    if (ini !== undefined) {
      writeFileSync(path, side.fill(ini), 'latin1');
      chmodSync(path, 0o644);
    }
    const [program, ...first] = side.program.command as [string, ...string[]];
    const filled = args.map((arg) => side.fill(arg.replace('{ini}', path)));
    const outcome = await run(program, [...first, ...filled], { asSelf: options.asSelf === true, cwd: side.dir });
    return [
      `exit ${outcome.code ?? outcome.signal}`,
      ...outputLines(side, outcome.stdout, 'stdout'),
      ...outputLines(side, outcome.stderr, 'stderr'),
    ];
  });
}
