/*
 * Queries that run until the test ends them. A query of a fixed length may be over before a slow machine has done what the
 * test wants to do meanwhile.
 */

import { backendsBecome } from './answers';
import type { PgCluster } from './cluster';
import { cstring, type RawClient } from './raw-client';

let started = 0;

const prepared = new WeakSet<PgCluster>();

/** Creates the function that the queries call. */
async function prepare(pg: PgCluster): Promise<void> {
  if (prepared.has(pg)) return;
  prepared.add(pg);
  await pg.sql(`CREATE TABLE told (name text);
    CREATE FUNCTION until_told(wanted text) RETURNS void LANGUAGE plpgsql AS $$
      BEGIN
        WHILE NOT EXISTS (SELECT FROM told WHERE name = wanted) LOOP PERFORM pg_sleep(0.02); END LOOP;
      END $$`);
}

/**
 * Starts a query of a superuser, and waits until it runs. Its answer is one row.
 * @returns lets it end by itself
 */
export async function startUntilTold(pg: PgCluster, client: RawClient): Promise<() => Promise<void>> {
  await prepare(pg);
  const name = `query ${++started}.`;
  await client.sendMessage('Q', cstring(`SELECT until_told('${name}')`));
  await backendsBecome(pg, `query LIKE '%${name}%' AND wait_event = 'PgSleep'`, 1);
  return async () => {
    await pg.sql(`INSERT INTO told VALUES ('${name}')`);
  };
}
