/*
 * Where a cancel request goes: to the server that runs the query, in a list of hosts too, and through TLS if the server
 * connection has it. And the name that TLS connections to servers announce (SNI).
 */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import { Bouncer, eventually, it, PgCluster } from '../harness';
import { CertFolder } from '../harness/certs';
import { after, before } from '../harness/limits';
import {
  CANCEL_REQUEST,
  cancelRequest,
  cstring,
  errorFields,
  letters,
  type RawClient,
  SSL_REQUEST,
} from '../harness/raw-client';

const certs = new CertFolder();
const ca = certs.authority('ca');
const site = certs.issue(ca, 'site', { cn: 'localhost', san: 'DNS:localhost,IP:127.0.0.1' });

let one: PgCluster;
let two: PgCluster;
before(async () => {
  const ssl = { ssl: 'on', ssl_cert_file: site.cert, ssl_key_file: site.key };
  [one, two] = await Promise.all([PgCluster.start({ settings: ssl }), PgCluster.start({ settings: ssl })]);
});
after(async () => {
  await one.stop();
  await two.stop();
});

/** A connection in front of a server, which notes how each connection begins. */
class Door {
  /** for each connection, the codes of the requests before its login or instead of it; the second one inside TLS */
  readonly seen: number[][] = [];
  /** the names that were announced */
  readonly names: (string | false)[] = [];
  port = 0;
  private readonly server = createServer((near) => this.accept(near));
  private readonly ends = new Set<Socket>();

  /** @param pg the server, reached without TLS */
  static async open(pg: PgCluster, tls: boolean): Promise<Door> {
    const door = new Door(pg, tls);
    await new Promise<void>((settle) => door.server.listen(0, '127.0.0.1', settle));
    door.port = (door.server.address() as AddressInfo).port;
    return door;
  }

  private constructor(
    private readonly pg: PgCluster,
    private readonly tls: boolean,
  ) {}

  close(): void {
    for (const end of this.ends) end.destroy();
    this.server.close();
  }

  private track<T extends Socket>(end: T): T {
    this.ends.add(end);
    return end.on('error', () => {});
  }

  private accept(near: Socket): void {
    const codes: number[] = [];
    this.seen.push(codes);
    this.track(near).once('data', (first: Buffer) => {
      codes.push(first.readInt32BE(4));
      if (codes[0] !== SSL_REQUEST || !this.tls) {
        this.pass(near, first);
        return;
      }
      near.write('S');
      const options = { isServer: true, key: readFileSync(site.key), cert: readFileSync(site.cert) };
      const inside = this.track(new TLSSocket(near, options));
      inside.once('data', (inner: Buffer) => {
        codes.push(inner.readInt32BE(4));
        this.names.push((inside as unknown as { servername: string | false }).servername);
        this.pass(inside, inner);
      });
    });
  }

  private pass(near: Socket, first: Buffer): void {
    const far = this.track(connect(this.pg.port, '127.0.0.1'));
    far.write(first);
    near.pipe(far);
    far.pipe(near);
  }
}

async function loggedIn(own: Bouncer): Promise<RawClient> {
  const client = await own.raw();
  assert.equal(letters(await client.login({ database: 'app' })).at(-1), 'Z');
  return client;
}

/** Starts a query that would run for ten minutes, and waits until one of the servers runs it. */
async function startSleeping(client: RawClient, servers: PgCluster[]): Promise<void> {
  const mark = `victim ${client.socket.localPort}`;
  await client.sendMessage('Q', cstring(`SELECT /* ${mark} */ pg_sleep(600)`));
  const running = `SELECT 1 FROM pg_stat_activity WHERE query LIKE '%${mark}%' AND wait_event = 'PgSleep'`;
  await eventually('the query to run', async () => {
    for (const pg of servers) if ((await pg.sql(running)).rowCount === 1) return true;
    return false;
  });
}

async function cancelAndCheck(own: Bouncer, client: RawClient): Promise<void> {
  await cancelRequest({ port: own.port }, client.backendPid, client.backendKey);
  const error = (await client.until('Z')).find((msg) => msg.type === 'E');
  assert.equal(error === undefined ? '' : errorFields(error).C, '57014');
}

it('a cancel request goes to the host that runs the query, one after another and all at once', async () => {
  const app = `host=127.0.0.1,127.0.0.1 port=${one.port},${two.port} dbname=postgres pool_size=4`;
  const own = await Bouncer.start({ databases: { app }, settings: { server_tls_sslmode: 'disable' } });
  const clients: RawClient[] = [];
  for (let n = 0; n < 4; n++) {
    const client = await loggedIn(own);
    await startSleeping(client, [one, two]);
    clients.push(client);
  }
  const sleeping = "SELECT count(*)::int AS n FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
  for (const pg of [one, two]) assert.equal((await pg.sql(sleeping)).rows[0].n, 2);
  // in another order than they came, so that it is not the order of the hosts
  for (const client of [...clients].reverse()) await cancelAndCheck(own, client);
  for (const client of clients) await startSleeping(client, [one, two]);
  await Promise.all(clients.map((client) => cancelAndCheck(own, client)));
  for (const client of clients) await client.end();
  await own.stop();
});

it('a cancel request goes through TLS if the server connection has it, and both announce the name', async () => {
  const door = await Door.open(one, true);
  for (const mode of ['prefer', 'require', 'verify-ca', 'verify-full']) {
    door.seen.length = door.names.length = 0;
    const app = `host=localhost port=${door.port} dbname=postgres`;
    const settings = { server_tls_sslmode: mode, server_tls_ca_file: ca.cert };
    const own = await Bouncer.start({ databases: { app }, settings });
    const client = await loggedIn(own);
    await startSleeping(client, [one]);
    await cancelAndCheck(own, client);
    assert.deepEqual(door.names, ['localhost', 'localhost'], mode);
    assert.equal(door.seen.at(-1)?.[0], SSL_REQUEST);
    assert.equal(door.seen.at(-1)?.[1], CANCEL_REQUEST);
    await client.end();
    await own.stop();
  }
  door.close();
});

it('an address is not announced', async () => {
  const door = await Door.open(one, true);
  const app = `host=127.0.0.1 port=${door.port} dbname=postgres`;
  const own = await Bouncer.start({ databases: { app }, settings: { server_tls_sslmode: 'require' } });
  await (await loggedIn(own)).end();
  assert.deepEqual(door.names, [false]);
  await own.stop();
  door.close();
});

it('a cancel request stays without TLS if the server connection has none', async () => {
  const door = await Door.open(one, false);
  const app = `host=localhost port=${door.port} dbname=postgres`;
  const own = await Bouncer.start({ databases: { app }, settings: { server_tls_sslmode: 'disable' } });
  const client = await loggedIn(own);
  await startSleeping(client, [one]);
  await cancelAndCheck(own, client);
  assert.deepEqual(door.seen.at(-1), [CANCEL_REQUEST]);
  await client.end();
  await own.stop();
  door.close();
});
