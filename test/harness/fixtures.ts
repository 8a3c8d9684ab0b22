/*
 * Set-up that test files share: a PostgreSQL server per file, and poolers with the databases of the console tests.
 */

import { Bouncer, it, PgCluster } from '../harness';
import { after, before } from './limits';

let pg: PgCluster;

/**
 * Starts a PostgreSQL server with these users, which need no password, before the tests of a file, and stops it after
 * them.
 * @returns the server; may be called only inside tests
 */
export function clusterWithUsers(...users: string[]): () => PgCluster {
  let server: PgCluster | null = null;
  before(async () => {
    server = await PgCluster.start();
    for (const name of users) await server.createUser(name, '', 'none');
  });
  after(async () => {
    await server?.stop();
  });
  return () => server as PgCluster;
}

/** The server of withCluster(); may be called only inside tests. */
export function cluster(): PgCluster {
  return pg;
}

/** Starts a PostgreSQL server before the tests of a file, and stops it after them. */
export function withCluster(): void {
  before(async () => {
    pg = await PgCluster.start();
  });
  after(async () => {
    await pg.stop();
  });
}

/**
 * A pooler with transaction pooling on `app` and `other`, session pooling on `sess`, and no `*`, so that databases can
 * be missing. A login of a server that PAUSE or KILL has ended counts as failed, so the retry interval is short.
 */
export function startPooler(settings: Record<string, string | number | null> = {}): Promise<Bouncer> {
  const databases = {
    app: pg.connstr(),
    other: pg.connstr(),
    sess: pg.connstr('postgres', 'pool_mode=session'),
  };
  return Bouncer.start({
    cluster: pg,
    databases,
    settings: { pool_mode: 'transaction', server_login_retry: 1, ...settings },
  });
}

/** A test with a pooler of its own. */
export function itAlone(
  name: string,
  body: (own: Bouncer) => Promise<void>,
  settings: Record<string, string | number | null> = {},
): void {
  it(name, async () => {
    const own = await startPooler(settings);
    try {
      await body(own);
    } finally {
      await own.stop();
    }
  });
}
