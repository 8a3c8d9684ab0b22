/*
 * Helpers of the tests of security fixes: a server whose behaviour can be defined per database, a pooler under attack
 * that must keep working, and the packets of attackers.
 */

import assert from 'node:assert/strict';
import type { ClientConfig } from 'pg';
import { ADMIN_PASSWORD, ADMIN_USER, Bouncer, type BouncerOptions, type PgCluster } from '../harness';
import { FakeServer, NO_DATABASE, type Visit } from './hostile/fake-server';
import { cstring, int32, type Message, message, type RawClient } from './raw-client';

/** Short timeouts, because most attacks include a refused server. */
const SHORT_TIMEOUTS = { server_login_retry: 1, query_wait_timeout: 5, server_connect_timeout: 5 };

/** An AuthenticationRequest with that code and further fields. */
export const authentication = (code: number, ...rest: Buffer[]) => message('R', int32(code), ...rest);

/** An ErrorResponse of these fields, each a letter and its text. */
export const errorResponse = (...fields: string[]) => message('E', ...fields.map(cstring), Buffer.alloc(1));

/** A server whose behaviour the test defines per database. */
export class ScriptedServer {
  private readonly parts = new Map<string, (visit: Visit) => Promise<void>>();

  private constructor(readonly fake: FakeServer) {}

  static async start(): Promise<ScriptedServer> {
    let self: ScriptedServer | null = null;
    const fake = await FakeServer.start(async (visit) => {
      const part = self?.parts.get(visit.database);
      if (part === undefined) visit.socket.end(NO_DATABASE);
      else await part(visit);
    });
    self = new ScriptedServer(fake);
    return self;
  }

  play(database: string, part: (visit: Visit) => Promise<void>): void {
    this.parts.set(database, part);
  }

  get port(): number {
    return this.fake.port;
  }

  stop(): Promise<void> {
    return this.fake.stop();
  }
}

/** Checks that the client gets one error as the last message, and then the end of the connection. */
export async function refusedWith(client: RawClient, text: string | RegExp): Promise<Message> {
  const messages = await client.until('E');
  const error = messages.at(-1);
  assert.equal(error?.type, 'E', `no error, but ${messages.map((msg) => msg.type).join('')}`);
  const fields = (error as Message).body.toString('latin1').split('\0');
  const said = fields.find((field) => field.startsWith('M'))?.slice(1) ?? '';
  if (typeof text === 'string') assert.equal(said, text);
  else assert.match(said, text);
  assert.deepEqual(await client.until(''), [], 'something was said behind the error');
  await client.destroy();
  return error as Message;
}

/**
 * Runs `body` with a pooler, which afterwards must still run, serve other clients, and have logged no internal error.
 * @param options its databases are added to `postgres` on the cluster
 * @param ssl TLS options for the test's own connection, if the pooler requires TLS
 */
export async function withAttackedPooler(
  cluster: PgCluster,
  options: BouncerOptions,
  body: (bouncer: Bouncer) => Promise<void>,
  ssl: ClientConfig['ssl'] = false,
): Promise<void> {
  const { settings, databases } = options;
  const bouncer = await Bouncer.start({
    cluster,
    ...options,
    databases: { postgres: cluster.connstr(), ...databases },
    settings: { ...SHORT_TIMEOUTS, ...settings },
  });
  try {
    await body(bouncer);
    const login = settings?.auth_type === undefined ? {} : { user: ADMIN_USER, password: ADMIN_PASSWORD };
    assert.equal((await bouncer.sql('SELECT 1 AS one', { ...login, ssl })).rows[0].one, 1);
    const faults = bouncer.log.text.split('\n').filter((line) => /\] FATAL |exception|internal error/.test(line));
    assert.deepEqual(faults, []);
  } finally {
    await bouncer.stop();
  }
}
