/*
 * Asynchronous clients of libpq over TLS: whatever the size of a result, they must not be left waiting for a socket that
 * stays silent while the rest of a record lies inside their OpenSSL.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { after, before } from 'node:test';
import { Bouncer, itUnless, PgCluster, run, tempDir } from './harness';
import { CertFolder } from './harness/certs';

const SCRIPT = `
import asyncio, sys, psycopg
async def main(conninfo):
    sizes = [1, 100, 4000, 4090, 4096, 5000, 8000, 8100, 8150, 8170, 8180, 8187, 8192, 8200, 8300, 8400, 12000, 12288]
    sizes += [16000, 16100, 16300, 16360, 16384, 16400, 20000, 24576, 30000, 32700, 32768, 33000, 40000, 49152, 60000, 70000]
    late = []
    count = 0
    conn = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
    for size in sizes:
        for rows in range(1, 11):
            count += 1
            cur = conn.cursor()
            try:
                await asyncio.wait_for(cur.execute(f"select repeat('x', {size}) from generate_series(1, {rows})"), 5)
                got = await cur.fetchall()
                assert len(got) == rows and all(len(row[0]) == size for row in got)
            except asyncio.TimeoutError:
                late.append((size, rows))
                conn = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
                if len(late) > 3: break
        if len(late) > 3: break
    print(count, 'queries, late:', late)
    sys.exit(1 if late else 0)
asyncio.run(main(sys.argv[1]))
`;

/** The first python3 that has psycopg: Debian's package is for Debian's own. */
const python = ['python3', '/usr/bin/python3'].find(
  (program) => spawnSync(program, ['-c', 'import psycopg'], { timeout: 20_000 }).status === 0,
);
const noPsycopg =
  python === undefined ? "there is no python3 with psycopg (Debian's python3-psycopg) on this machine" : null;

let pg: PgCluster;
before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

const certs = new CertFolder();
const ca = certs.authority('ca');
const site = certs.issue(ca, 'site', { cn: 'localhost', san: 'DNS:localhost,IP:127.0.0.1' });

for (const protocol of ['tlsv1.2', 'tlsv1.3']) {
  itUnless(noPsycopg)(`an asynchronous libpq client gets results of every size over ${protocol}`, async () => {
    const settings = {
      auth_type: 'trust',
      client_tls_sslmode: 'require',
      client_tls_protocols: protocol,
      client_tls_key_file: site.key,
      client_tls_cert_file: site.cert,
    };
    const pooler = await Bouncer.start({ cluster: pg, settings });
    const conninfo = `host=127.0.0.1 port=${pooler.port} dbname=postgres user=postgres sslmode=require`;
    const outcome = await run(python ?? '', ['-c', SCRIPT, conninfo], {
      timeoutMs: 100_000,
      // libpq looks for certificates in its user's home
      env: { ...process.env, HOME: tempDir('home') },
    });
    assert.equal(outcome.code, 0, outcome.stdout + outcome.stderr);
    assert.match(outcome.stdout, /^340 queries, late: \[\]/);
    await pooler.stop();
  });
}
