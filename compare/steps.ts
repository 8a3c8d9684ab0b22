/*
 * The steps of scenarios: each function makes one step, which does the same on both sides. The results of the step
 * (messages received, rows, exit codes) are compared.
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

/** Limit of an answer, longer than every timeout in a scenario. */
const ANSWER_MS_MAX = 8_000;

export function step(text: string, run: Step['run']): Step {
  return { text, run };
}

/** All messages up to the end of the connection, and an item for the end. */
export async function untilClosed(client: RawClient): Promise<Item[]> {
  const messages = await client.until('', ANSWER_MS_MAX);
  return [...decode(messages), 'connection closed'];
}

/** All messages up to one of those letters, or up to the end of the connection with an item for the end. */
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

/** Connects over TCP and logs in with the method that the pooler requests. */
export function login(name: string, login: Login = {}): Step {
  return step(`${name}: login ${who(login)}`, async (side) => loggedIn(await side.open(name), login));
}

/** Connects over the Unix socket and logs in. */
export function loginUnix(name: string, login: Login = {}): Step {
  return step(`${name}: Unix login ${who(login)}`, async (side) => loggedIn(await side.open(name, true), login));
}

/** Logs in and disconnects, for tables of logins. */
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

/** Sends SSLRequest or GSSENCRequest on one connection; the results are the one-byte answers. */
export function requests(name: string, ...codes: number[]): Step {
  return step(`${name}: requests ${codes.join(' ')}`, async (side) => {
    const client = side.clients.get(name) ?? (await side.open(name));
    const answers: string[] = [];
    for (const code of codes) answers.push(`answer ${await client.request(code)}`);
    return answers;
  });
}

/** Logs in on a connection that is already open. */
export function startup(name: string, login: Login = {}): Step {
  return step(`${name}: startup ${who(login)}`, (side) => loggedIn(side.client(name), login));
}

export function bye(...names: string[]): Step {
  return step(`${names.join(', ')}: goodbye`, async (side) => {
    for (const name of names) await side.client(name).end();
    return [];
  });
}

/** Disconnects without Terminate. */
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

/** Reads up to and including one of those letters. */
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

/** Sends a cancel request with the key of that client, or with a wrong key. */
export function cancel(name: string, wrongKey = false): Step {
  return step(`${name}: cancel request${wrongKey ? ' with a wrong key' : ''}`, async (side) => {
    const { backendPid, backendKey } = side.client(name);
    const key = wrongKey ? Buffer.from(backendKey.map((byte) => byte ^ 0xff)) : backendKey;
    await cancelRequest({ port: side.pooler.port }, backendPid, key);
    return [];
  });
}

/** Sends a cancel request to the second pooler. */
export function cancelAtOther(name: string): Step {
  return step(`${name}: cancel request to the other pooler`, async (side) => {
    const { backendPid, backendKey } = side.client(name);
    await cancelRequest({ port: side.other?.port ?? 0 }, backendPid, backendKey);
    return [];
  });
}

/** Ends the server connection of the client, as a broken server would. */
export function killServer(name: string): Step {
  return step(`${name}: its server is killed`, async (side) => {
    const client = side.client(name);
    const answer = await client.query('SELECT pg_backend_pid()');
    const row = answer.find(({ type }) => type === 'D');
    const pid = Number(row?.body.toString('latin1', 6));
    await side.testBed.cluster.killBackends(`pid = ${pid}`);
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
  // over the Unix socket, which never requires TLS
  const client = await side.open('console', true);
  await client.login({ user: ADMIN_USER, password: ADMIN_PASSWORD, database: 'pgbouncer' });
  return client;
}

/** Masks the numbers in a table of averages, which depend on the start of the period. */
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

/** SHOW CONFIG, limited to those settings. */
export function showSettings(...keys: string[]): Step {
  return step(`console: settings ${keys.join(', ')}`, async (side) => {
    const items = decode(await (await consoleOf(side)).query('SHOW CONFIG'));
    return items.map((item) => {
      if (typeof item === 'string') return item;
      return { ...item, rows: item.rows.filter((row) => keys.includes(row[0] ?? '')) };
    });
  });
}

/** A console command that is answered later (PAUSE, SHUTDOWN), by receive('console') or closed('console'). */
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

/** Waits until SHOW POOLS shows that value for a database, for states without an event. */
export function whenPool(column: string, count: number, database = 'postgres'): Step {
  return step(`until ${database} has ${column} = ${count}`, async (side) => {
    const client = await consoleOf(side);
    const reached = async () => (await poolColumn(client, column, database)) === count;
    await eventually(`${column} = ${count} in SHOW POOLS`, reached, ANSWER_MS_MAX);
    return [];
  });
}

/* ---- process and files ---- */

/** Waits until the log matches; the log is compared at the end. */
export function logSays(pattern: RegExp): Step {
  return step(`log says ${pattern}`, async (side) => {
    await side.pooler.logWait(pattern, 0, ANSWER_MS_MAX);
    return [];
  });
}

/** Waits until the log has that many matches. */
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

/**
 * Starts a new process, which takes over, and waits for the exit of the old process. Closes the shared console first.
 */
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

/** Starts a new process, which cannot take over and exits. */
export function rebootThatFails(): Step {
  return step('-R that fails', async (side) => {
    const next = side.pooler.beside(['-R']);
    const end = await next.expectEnd(ANSWER_MS_MAX);
    return [`exit ${end.code ?? end.signal}`, ...maskLog(next.log.text, side.names)];
  });
}

/** Waits until the process exits by itself. */
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

/** Rewrites a file in the side's folder. */
export function rewriteFile(name: string, text: string, about = ''): Step {
  return step(`${name} is written anew${about === '' ? '' : `: ${about}`}`, async (side) => {
    side.write(name, text);
    return [];
  });
}

/** Removes a file from the pooler's folder. */
export function removeFile(name: string): Step {
  return step(`${name} is removed`, async (side) => {
    rmSync(join(side.pooler.dir, name));
    return [];
  });
}

/** Waits, only to show that nothing happens. */
export function pause(ms: number): Step {
  return step(`${ms} ms pass`, async () => {
    await new Promise((wake) => setTimeout(wake, ms));
    return [];
  });
}

/** The output of a command, with log lines masked and one program name in usage texts. */
function outputLines(side: Side, text: string, label: string): string[] {
  const name = `(?:\\S*/)?${side.program.program}`;
  const own = text.replace(new RegExp(`(^|^  |Try ")${name}(?=:| is | \\[OPTION| --help")`, 'gm'), '$1PROGRAM');
  return maskLog(own, side.names).map((line) => `${label}: ${line}`);
}

/**
 * Runs the program with those arguments until it exits; `{ini}` in them is a file with the text `ini`, if given.
 * `asSelf` runs it as root if the comparison itself runs as root.
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
