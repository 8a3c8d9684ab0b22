/*
 * The console in the extended protocol: SHOW and commands by Parse, Bind, Describe and Execute, at the level of
 * messages and through the drivers `pg` and `postgres`, which prepare their queries.
 */

import assert from 'node:assert/strict';
import type { Client, QueryConfig } from 'pg';
import postgres from 'postgres';
import { ADMIN_PASSWORD, type Bouncer, eventually, it } from '../harness';
import { fails } from '../harness/expect';
import { itAlone, startPooler, withCluster } from '../harness/fixtures';
import { after, before, describe } from '../harness/limits';
import {
  cancelRequest,
  cstring,
  errorFields,
  int16,
  int32,
  letters,
  type Message,
  message,
  type RawClient,
  rowValues,
} from '../harness/raw-client';

const ADMIN = { user: 'admin', database: 'pgbouncer', password: ADMIN_PASSWORD };
const SYNC = message('S');
const FLUSH = message('H');

function parse(name: string, query: string): Buffer {
  return message('P', cstring(name), cstring(query), int16(0));
}
function bind(portal: string, statement: string, formats: number[] = []): Buffer {
  return message(
    'B',
    cstring(portal),
    cstring(statement),
    int16(0),
    int16(0),
    int16(formats.length),
    ...formats.map(int16),
  );
}
function describeIt(kind: 'S' | 'P', name: string): Buffer {
  return message('D', Buffer.from(kind), cstring(name));
}
function execute(portal: string, limit = 0): Buffer {
  return message('E', cstring(portal), int32(limit));
}
function close(kind: 'S' | 'P', name: string): Buffer {
  return message('C', Buffer.from(kind), cstring(name));
}

/** The messages that drivers send for an unnamed statement. */
function oneShot(query: string, formats: number[] = []): Buffer[] {
  return [parse('', query), bind('', '', formats), describeIt('P', ''), execute(''), SYNC];
}

async function consoleOf(own: Bouncer): Promise<RawClient> {
  const raw = await own.raw();
  assert.equal((await raw.login(ADMIN)).at(-1)?.type, 'Z');
  return raw;
}

/** Names, type OIDs and formats of a RowDescription. */
function columns(msg: Message | undefined): { name: string; type: number; format: number }[] {
  assert.equal(msg?.type, 'T');
  const body = (msg as Message).body;
  const found: { name: string; type: number; format: number }[] = [];
  let at = 2;
  while (at < body.length) {
    const nul = body.indexOf(0, at);
    found.push({
      name: body.toString('latin1', at, nul),
      type: body.readUInt32BE(nul + 7),
      format: body.readUInt16BE(nul + 17),
    });
    at = nul + 19;
  }
  return found;
}

function errorOf(messages: Message[]): Record<string, string> {
  const error = messages.find((msg) => msg.type === 'E');
  assert.ok(error, `no error in ${letters(messages)}`);
  return errorFields(error);
}

/** The values of a DataRow in bytes. */
function rawValues(msg: Message): Buffer[] {
  const values: Buffer[] = [];
  let at = 2;
  while (at < msg.body.length) {
    const length = msg.body.readInt32BE(at);
    values.push(msg.body.subarray(at + 4, at + 4 + Math.max(length, 0)));
    at += 4 + Math.max(length, 0);
  }
  return values;
}

let bouncer: Bouncer;

withCluster();

describe('console messages', () => {
  let raw: RawClient;

  async function ask(...packets: Buffer[]): Promise<Message[]> {
    await raw.send(...packets);
    return raw.until('Z');
  }

  async function refused(packet: Buffer, sqlstate: string, text: string): Promise<void> {
    const answer = await ask(packet, parse('', 'SHOW VERSION'), execute('nowhere'), SYNC);
    assert.equal(letters(answer), 'EZ', `${text}: what follows is passed over`);
    const { S, C, M } = errorOf(answer);
    assert.deepEqual([S, C, M], ['ERROR', sqlstate, text]);
  }

  before(async () => {
    bouncer = await startPooler();
    raw = await consoleOf(bouncer);
  });
  after(async () => {
    await raw.end();
    await bouncer.stop();
  });

  it('the console parses, binds, describes and executes an unnamed statement', async () => {
    const answer = await ask(...oneShot('SHOW VERSION'));
    assert.equal(letters(answer), '12TDCZ');
    assert.match(rowValues(answer[3] as Message)[0] ?? '', /^tsbouncer|^PgBouncer/i);
    assert.equal(answer[4]?.body.toString(), 'SHOW\0');
  });

  it('the extended protocol returns the same rows as a simple query', async () => {
    const queries = ['CONFIG', 'DATABASES', 'USERS', 'LISTS', 'STATE', 'PEERS', 'DNS_HOSTS', 'TOTALS', 'timezone'];
    for (const word of queries) {
      const simple = (await raw.query(`SHOW ${word}`)).filter((msg) => 'TDC'.includes(msg.type));
      const extended = (await ask(...oneShot(`SHOW ${word}`))).filter((msg) => 'TDC'.includes(msg.type));
      assert.deepEqual(extended, simple, word);
    }
  });

  it('Describe of a statement reports no parameters and the columns that Execute sends', async () => {
    for (const query of ['SHOW POOLS', 'SELECT version', 'show datestyle', 'SHOW FDS']) {
      const answer = await ask(parse('', query), describeIt('S', ''), bind('', ''), execute(''), SYNC);
      assert.match(letters(answer), /^1tT2D*CZ$/, query);
      assert.deepEqual(answer[1]?.body, int16(0));
      const row = answer.find((msg) => msg.type === 'D');
      if (row !== undefined) assert.equal(rowValues(row).length, columns(answer[2]).length, query);
    }
    assert.match(letters(await ask(parse('', 'SHOW HELP'), describeIt('S', ''), SYNC)), /^1tnZ$/);
    assert.match(letters(await ask(parse('', 'RELOAD'), describeIt('S', ''), SYNC)), /^1tnZ$/);
  });

  it('named statements last until Close, portals until Sync', async () => {
    assert.equal(letters(await ask(parse('one', 'SHOW STATE'), SYNC)), '1Z');
    assert.equal(letters(await ask(bind('p', 'one'), describeIt('P', 'p'), execute('p'), SYNC)), '2TDDDCZ');
    assert.equal(
      letters(await ask(bind('p', 'one'), close('P', 'p'), bind('p', 'one'), execute('p'), SYNC)),
      '232DDDCZ',
    );
    await refused(execute('p'), '34000', 'portal "p" does not exist');
    await refused(parse('one', 'SHOW STATE'), '42P05', 'prepared statement "one" already exists');
    assert.equal(letters(await ask(close('S', 'one'), close('S', 'never'), SYNC)), '33Z');
    await refused(bind('', 'one'), '26000', 'prepared statement "one" does not exist');
  });

  it('columns are sent in the format that Bind requests', async () => {
    await ask(parse('stats', 'SHOW STATS'), SYNC);
    const text = await ask(bind('', 'stats'), execute(''), SYNC);
    const binary = await ask(bind('', 'stats', [1]), describeIt('P', ''), execute(''), SYNC);
    const described = columns(binary.find((msg) => msg.type === 'T'));
    assert.ok(described.every((column) => column.format === 1));
    const textRow = rowValues(text.find((msg) => msg.type === 'D') as Message);
    const row = rawValues(binary.find((msg) => msg.type === 'D') as Message);
    assert.equal(row[0]?.toString(), textRow[0], 'text is the same in both formats');
    assert.equal(described[1]?.type, 1700, 'numeric');
    for (const [i, value] of row.entries()) if (i > 0) assert.equal(numericText(value), textRow[i]);

    await ask(parse('lists', 'SHOW LISTS'), SYNC);
    const one = await ask(bind('', 'lists', [0, 1]), describeIt('P', ''), execute(''), SYNC);
    assert.deepEqual(
      columns(one[1]).map((column) => column.format),
      [0, 1],
    );
    const databases = one.filter((msg) => msg.type === 'D').map(rawValues)[0] as Buffer[];
    assert.equal(databases[0]?.toString(), 'databases');
    assert.equal(databases[1]?.length, 4, 'int4 in binary');
    assert.ok((databases[1] as Buffer).readInt32BE(0) > 0);

    await refused(bind('', 'lists', [1, 1, 1]), '08P01', 'bind message has 3 result formats but query has 2 columns');
    await refused(bind('', 'lists', [2]), '22023', 'unsupported format code: 2');
  });

  it('int8 and bytea columns are sent in binary format on request', async () => {
    const answer = await ask(...oneShot('SHOW FDS', [1]));
    const at = columns(answer.find((msg) => msg.type === 'T')).findIndex((column) => column.name === 'cancel');
    const rows = answer.filter((msg) => msg.type === 'D').map(rawValues);
    assert.ok(rows.length > 0);
    for (const row of rows) assert.equal(row[at]?.length, 8);
  });

  it('a row limit suspends the portal, and the next Execute continues it', async () => {
    await ask(parse('state', 'SHOW STATE'), SYNC);
    assert.equal(letters(await ask(bind('', 'state'), execute('', 2), execute('', 2), SYNC)), '2DDsDCZ');
    assert.equal(letters(await ask(bind('', 'state'), execute('', 3), execute('', 0), execute(''), SYNC)), '2DDDsCCZ');
    assert.equal(letters(await ask(bind('', 'state'), execute('', 1), SYNC)), '2DsZ', 'the rest is dropped');
  });

  it('a command runs once, at Execute', async () => {
    const set = await ask(...oneShot("SET server_check_query = 'select 3'"));
    assert.equal(letters(set), '12nCZ');
    assert.equal(set[3]?.body.toString(), 'SET server_check_query=select 3\0');
    const twice = await ask(parse('', 'RECONNECT'), bind('', ''), execute(''), execute(''), SYNC);
    assert.equal(letters(twice), '12CEZ');
    assert.deepEqual([errorOf(twice).C, errorOf(twice).M], ['55000', 'portal "" cannot be run']);
    const from = bouncer.log.mark();
    await ask(parse('', 'RELOAD'), bind('', ''), SYNC);
    assert.equal(bouncer.log.count(/RELOAD command issued/, from), 0);
  });

  it('an ERROR skips the pipeline up to Sync and keeps the session open', async () => {
    await refused(parse('', 'frobnicate'), '08P01', "invalid command 'frobnicate', use SHOW HELP;");
    await refused(parse('', 'SHOW nonsense'), '08P01', "invalid command 'SHOW nonsense', use SHOW HELP;");
    await refused(
      parse('', 'SHOW STATE; SHOW STATE'),
      '08P01',
      "invalid command 'SHOW STATE; SHOW STATE', use SHOW HELP;",
    );
    await refused(
      message('P', cstring(''), cstring('SHOW STATE'), int16(1), int32(25)),
      '0A000',
      'the admin console takes no parameters',
    );
    await refused(bind('', ''), '26000', 'unnamed prepared statement does not exist');
    await refused(describeIt('S', 'x'), '26000', 'prepared statement "x" does not exist');
    await refused(describeIt('P', 'x'), '34000', 'portal "x" does not exist');
    await refused(message('D', Buffer.from('Q'), cstring('')), '08P01', 'invalid DESCRIBE message subtype 81');
    await refused(message('P', Buffer.from('no end')), '08P01', 'invalid message format');
    await refused(message('B', cstring('')), '08P01', 'invalid message format');
    await refused(message('E'), '08P01', 'invalid message format');
    const late = await ask(
      parse('', 'PAUSE nowhere'),
      bind('', ''),
      execute(''),
      execute(''),
      message('Q', cstring('PAUSE')),
      SYNC,
    );
    assert.equal(letters(late), '12EZ', 'a simple query is passed over too');
    assert.equal(errorOf(late).M, 'no such database: nowhere');
    assert.equal((await bouncer.admin('SHOW STATE'))[0]?.value, 'yes');
  });

  it('the console refuses statement parameters', async () => {
    const values = [int16(1), int32(1), Buffer.from('x')];
    const answer = await ask(
      parse('', 'SHOW STATE'),
      message('B', cstring(''), cstring(''), int16(0), ...values, int16(0)),
      SYNC,
    );
    assert.equal(letters(answer), '1EZ');
    assert.equal(errorOf(answer).M, 'bind message supplies 1 parameters, but prepared statement "" requires 0');
  });

  it('an empty query is answered as in PostgreSQL', async () => {
    for (const query of ['', ' ;\n', '-- ping']) assert.equal(letters(await ask(...oneShot(query))), '12nIZ', query);
  });

  it('answers are sent before Sync, with or without Flush', async () => {
    await raw.send(parse('', 'SHOW VERSION'), FLUSH);
    assert.equal(letters(await raw.until('1')), '1');
    await raw.send(bind('', ''), execute(''), FLUSH);
    assert.equal(letters(await raw.until('C')), '2DC');
    assert.equal(letters(await ask(SYNC)), 'Z');
  });

  it('a simple query drops the unnamed statement and all portals', async () => {
    await raw.send(parse('', 'SHOW STATE'), bind('p', ''), message('Q', cstring('SHOW VERSION')));
    assert.equal(letters(await raw.until('Z')), '12TDCZ');
    await refused(execute('p'), '34000', 'portal "p" does not exist');
    await refused(bind('', ''), '26000', 'unnamed prepared statement does not exist');
  });

  it('the number and size of statements and portals are limited', async () => {
    const other = await consoleOf(bouncer);
    const many = Array.from({ length: 1025 }, (_, i) => parse(`s${i}`, 'SHOW STATE'));
    await other.send(...many, SYNC);
    const answer = await other.until('Z');
    assert.equal(letters(answer), `${'1'.repeat(1024)}EZ`);
    assert.equal(errorOf(answer).C, '54000');
    await other.send(...Array.from({ length: 65 }, (_, i) => bind(`p${i}`, 's1')), SYNC);
    assert.equal(letters(await other.until('Z')), `${'2'.repeat(64)}EZ`);
    await other.end();
    await refused(parse('n'.repeat(300), 'SHOW STATE'), '42622', 'name of prepared statement too long');
    await refused(parse('', `SHOW STATE${' '.repeat(2000)}`), '54000', 'query too long');
  });

  it('a stats user may run SHOW only', async () => {
    const looking = await bouncer.raw();
    await looking.login({ user: 'stats', password: 'stats-password', database: 'pgbouncer' });
    await looking.send(...oneShot('SHOW STATE'));
    assert.equal(letters(await looking.until('Z')), '12TDDDCZ');
    for (const query of ['RELOAD', 'SHOW FDS', 'SET verbose = 1']) {
      await looking.send(...oneShot(query));
      assert.equal(errorOf(await looking.until('Z')).M, 'admin access needed');
    }
    await looking.end();
  });

  it('HANDOVER is refused in the extended protocol', async () => {
    const answer = await ask(...oneShot('HANDOVER 1'));
    assert.equal(errorOf(answer).M, 'HANDOVER needs the simple protocol');
  });
});

/** Converts a binary numeric to text. */
function numericText(value: Buffer): string {
  const [count, weight] = [value.readUInt16BE(0), value.readInt16BE(2)];
  let number = 0n;
  for (let i = 0; i <= weight; i++) number = number * 10_000n + BigInt(i < count ? value.readUInt16BE(8 + 2 * i) : 0);
  return String(number);
}

describe('commands that wait', () => {
  itAlone('PAUSE by Execute is answered when it is done, and Sync after it', async (own) => {
    const busy = await own.connect({ database: 'app' });
    await busy.query('BEGIN');
    const raw = await consoleOf(own);
    // the next query has already arrived: it has to wait for the answer
    await raw.send(...oneShot('PAUSE'), ...oneShot('SHOW STATE'));
    assert.equal(letters(await raw.until('n')), '12n');
    await own.logWait(/LOG PAUSE command issued/);
    await busy.query('COMMIT');
    assert.equal(letters(await raw.until('Z')), 'CZ');
    const state = await raw.until('Z');
    assert.equal(letters(state), '12TDDDCZ');
    assert.deepEqual(rowValues(state[4] as Message), ['paused', 'yes']);
    await own.admin('RESUME');
    await busy.end();
    await raw.end();
  });

  itAlone('SUSPEND, WAIT_CLOSE and PAUSE of a database work by Execute', async (own) => {
    const raw = await consoleOf(own);
    for (const [command, undo] of [
      ['SUSPEND', 'RESUME'],
      ['PAUSE app', 'RESUME app'],
      ['WAIT_CLOSE', ''],
    ] as const) {
      await raw.send(...oneShot(command));
      const answer = await raw.until('Z');
      assert.equal(letters(answer), '12nCZ', command);
      assert.equal(answer[3]?.body.toString(), `${command.split(' ')[0]}\0`);
      if (undo !== '') await raw.query(undo);
    }
    await raw.end();
  });

  itAlone('a cancel request ends a PAUSE by Execute, and what follows is answered', async (own) => {
    const busy = await own.connect({ database: 'app' });
    await busy.query('BEGIN');
    const raw = await consoleOf(own);
    await raw.send(...oneShot('PAUSE'), ...oneShot('SHOW VERSION'));
    await own.logWait(/LOG PAUSE command issued/);
    await cancelRequest({ port: own.port }, raw.backendPid, raw.backendKey);
    const answer = await raw.until('Z');
    assert.equal(letters(answer), '12nEZ');
    assert.equal(errorOf(answer).C, '57014');
    assert.equal(letters(await raw.until('Z')), '12TDCZ');
    await busy.query('COMMIT');
    await busy.end();
    await raw.end();
  });

  itAlone('a Sync after a canceled command ends the skipping of messages', async (own) => {
    const busy = await own.connect({ database: 'app' });
    await busy.query('BEGIN');
    const raw = await consoleOf(own);
    await raw.send(parse('', 'PAUSE'), bind('', ''), execute(''), FLUSH);
    await own.logWait(/LOG PAUSE command issued/);
    await cancelRequest({ port: own.port }, raw.backendPid, raw.backendKey);
    assert.equal(letters(await raw.until('E')), '12E');
    await raw.send(parse('', 'SHOW VERSION'), SYNC);
    assert.equal(letters(await raw.until('Z')), 'Z');
    await busy.query('COMMIT');
    await busy.end();
    await raw.end();
  });

  itAlone('a client that leaves while its PAUSE by Execute waits is noticed', async (own) => {
    const busy = await own.connect({ database: 'app' });
    await busy.query('BEGIN');
    const raw = await consoleOf(own);
    await raw.send(...oneShot('PAUSE'));
    const from = own.log.mark();
    await own.logWait(/LOG PAUSE command issued/);
    await raw.destroy();
    await own.logWait(/pgbouncer\/admin@.* closing because: client unexpected eof/, from);
    await busy.query('COMMIT');
    await own.admin('RESUME');
    await busy.end();
  });

  itAlone('SHUTDOWN by Execute ends the pooler', async (own) => {
    const raw = await consoleOf(own);
    await raw.send(...oneShot('SHUTDOWN'));
    await own.expectEnd();
    assert.equal(letters(await raw.until('')), '12n', 'not answered, as in the simple protocol');
    await raw.destroy();
  });
});

describe('drivers on the console', () => {
  let con: Client;
  before(async () => {
    bouncer = await startPooler();
    con = await bouncer.console();
  });
  after(async () => {
    await con.end();
    await bouncer.stop();
  });

  it('the driver pg runs prepared queries on the console and gets an error for parameters', async () => {
    for (let i = 0; i < 3; i++) {
      const state = await con.query({ name: 'state', text: 'SHOW STATE', values: [] });
      assert.deepEqual(
        state.rows.map((row) => row.key),
        ['active', 'paused', 'suspended'],
      );
    }
    const limited = await con.query({ text: 'SHOW STATE', values: [], rows: 2 } as QueryConfig);
    assert.ok(limited.rows.length >= 2);
    await fails(con.query('SHOW $1', ['STATE']), "invalid command 'SHOW $1', use SHOW HELP;");
    assert.equal((await con.query({ name: 'set', text: "SET application_name = 'x'", values: [] })).command, 'SET');
    const binary = await con.query({ text: 'SHOW LISTS', values: [], binary: true } as QueryConfig);
    assert.ok(binary.rows.every((row) => Number.isInteger(row.items)));
  });

  it('the driver postgres, which prepares all queries, works on the console', async () => {
    const sql = postgres({
      host: '127.0.0.1',
      port: bouncer.port,
      username: ADMIN.user,
      password: ADMIN.password,
      database: ADMIN.database,
      max: 1,
      fetch_types: false,
      onnotice: () => {},
    });
    try {
      for (let i = 0; i < 3; i++) {
        const pools = await sql`SHOW POOLS`;
        assert.equal(pools[0]?.database, 'pgbouncer');
      }
      await assert.rejects(sql`SHOW nonsense`, /invalid command/);
      assert.equal((await sql`RELOAD`).command, 'RELOAD');
      await sql`PAUSE app`;
      await eventually('app to be paused', async () =>
        (await sql`SHOW DATABASES`).some((row) => row.name === 'app' && row.paused === 1),
      );
      await sql`RESUME app`;
    } finally {
      await sql.end();
    }
  });
});
