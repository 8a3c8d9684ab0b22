/*
 * A client that resets its connection before the pooler accepts it: the kernel still has what it sent, but not its address.
 */

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { withPooler } from '../harness/answers';
import type { Bouncer } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { after, before } from '../harness/limits';
import { it, tempDir } from '../harness/machine';
import { cstring, message, PROTOCOL_30, RawClient, startupPacket } from '../harness/raw-client';

let pg: PgCluster;
before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

const STARTUP = startupPacket(PROTOCOL_30, { user: 'postgres', database: 'postgres' });

/** A client that connects, logs in, creates a table and resets the connection, all before the pooler accepts it. */
async function intrude(pooler: Bouncer): Promise<void> {
  const local = { host: pooler.socketDir, user: 'postgres', database: 'postgres' };
  // an idle server, and what the pooler greets clients with
  await pooler.sql('SELECT 1', local);
  const from = pooler.log.mark();
  pooler.signal('SIGSTOP');
  const client = await RawClient.connect({ port: pooler.port });
  await client.send(STARTUP, message('Q', cstring('CREATE TABLE intruded ()')));
  await client.destroy(true);
  pooler.signal('SIGCONT');
  await pooler.logWait(/@:0 closing because: client without an address/, from);
  const found = await pooler.sql("SELECT count(*)::int AS n FROM pg_class WHERE relname = 'intruded'", local);
  assert.equal(found.rows[0]?.n, 0);
}

it('a client without an address is not served: no HBA rule could reject it', async () => {
  const rules = join(tempDir('hba'), 'hba.conf');
  const lines = ['host all all 127.0.0.1/32 reject', 'host all all all trust', 'local all all trust', ''];
  writeFileSync(rules, lines.join('\n'), { mode: 0o644 });
  await withPooler({ cluster: pg, settings: { auth_type: 'hba', auth_hba_file: rules, tcp_defer_accept: 0 } }, intrude);
});

it('a client without an address is not served: it would not have to send a header of the PROXY protocol', () =>
  withPooler({ cluster: pg, settings: { proxy_protocol_networks: '127.0.0.0/8', tcp_defer_accept: 0 } }, intrude));
