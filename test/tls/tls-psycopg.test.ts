/*
 * A real libpq over TLS in asynchronous mode, as psycopg 3 uses it: the application waits for the socket, reads once
 * when it is readable, and waits again. Bytes that libpq leaves inside OpenSSL do not make the socket readable. So a
 * result whose last TLS record is larger than libpq's buffer would never complete.
 */

import assert from 'node:assert/strict';
import { Bouncer } from '../harness/bouncer';
import { CertFolder } from '../harness/certs';
import { PgCluster } from '../harness/cluster';
import { after, before, runSync } from '../harness/limits';
import { run } from '../harness/machine';
import { itUnless } from '../harness/needs';

/**
 * Argument: a conninfo. Input: one "bytes rows" per line. Output: a line for each query without an answer, then "done".
 */
const CLIENT = `
import asyncio, sys, psycopg

async def main():
    conn = None
    hung = 0
    for line in sys.stdin:
        size, rows = map(int, line.split())
        if conn is None:
            conn = await psycopg.AsyncConnection.connect(sys.argv[1], autocommit=True)
        try:
            async with conn.cursor() as cur:
                await asyncio.wait_for(cur.execute(f"SELECT repeat('x', {size}) FROM generate_series(1, {rows})"), 4)
                got = await cur.fetchall()
            assert [len(value) for value, in got] == [size] * rows
        except asyncio.TimeoutError:
            print(f"no answer: {size} bytes, {rows} rows", flush=True)
            conn.pgconn.finish()
            conn = None
            hung += 1
            if hung == 5:
                break
    print("done", flush=True)

asyncio.run(main())
`;

/** Sizes with which a row or result ends near the end of a TLS record or of a buffer of 4, 8, 16 or 32 kB. */
const EDGES: [number, number][] = [
  [8180, 3],
  [8192, 10],
  [8300, 3],
  [33000, 10],
];
const COMBINATIONS = 500;
const SIZE_MAX = 70_000;

function combinations(): [number, number][] {
  const list = [...EDGES];
  for (const base of [4096, 8192, 16384, 32768, 65536])
    for (let size = base - 40; size <= base + 40; size += 8) list.push([size, 1 + (size % 10)]);
  // the same sizes in every run
  let seed = 1;
  while (list.length < COMBINATIONS) {
    seed = (seed * 48271) % 0x7fffffff;
    list.push([1 + (seed % SIZE_MAX), 1 + (seed % 10)]);
  }
  return list;
}

/** The first Python interpreter that has psycopg 3; a distribution's package works only with its own interpreter. */
function findPython(): string | null {
  const has = (python: string) => runSync(python, ['-c', 'import psycopg']).status === 0;
  return ['python3', '/usr/bin/python3'].find(has) ?? null;
}

const python = findPython();
const noPsycopg = python === null ? 'there is no python3 with psycopg 3 on this machine' : null;
const certs = python === null ? null : new CertFolder();

let pg: PgCluster | null = null;
before(async () => {
  if (certs !== null) pg = await PgCluster.start();
});
after(() => pg?.stop());

for (const version of ['tlsv1.2', 'tlsv1.3']) {
  itUnless(noPsycopg)(`results of every size reach an asynchronous libpq client over ${version}`, async () => {
    const ca = (certs as CertFolder).authority(`ca-${version}`);
    const site = (certs as CertFolder).issue(ca, `site-${version}`, { cn: 'localhost' });
    const pooler = await Bouncer.start({
      cluster: pg as PgCluster,
      settings: {
        client_tls_sslmode: 'require',
        client_tls_protocols: version,
        client_tls_key_file: site.key,
        client_tls_cert_file: site.cert,
      },
    });
    const conninfo = `host=${pooler.host} port=${pooler.port} user=postgres dbname=postgres sslmode=require`;
    // without the certificates and passwords of the user that runs the test
    const env = { ...process.env, HOME: pooler.socketDir };
    const input = combinations()
      .map(([size, rows]) => `${size} ${rows}\n`)
      .join('');
    const { stdout, stderr } = await run(python as string, ['-c', CLIENT, conninfo], {
      input,
      timeoutMs: 100_000,
      env,
    });
    assert.equal(stdout, 'done\n', stderr);
    await pooler.stop();
  });
}
