/*
 * Set-up of takeover tests with all actors: options of a chain with large pools, and the actors of both transports.
 */

import type { PgCluster } from '../harness';
import type { Actor, ActorContext } from './actor';
import type { ChainOptions, RebootChain } from './reboot-chain';

export type Mode = 'session' | 'transaction';

export function optionsOf(server: PgCluster, mode: Mode, settings: Record<string, string | number> = {}): ChainOptions {
  const connstr = `host=127.0.0.1 port=${server.port} dbname=postgres`;
  return {
    cluster: server,
    databases: {
      postgres: connstr,
      postgres_narrow_tcp: `${connstr} pool_size=1`,
      postgres_narrow_unix: `${connstr} pool_size=1`,
    },
    settings: { pool_mode: mode, default_pool_size: 60, log_connections: 0, log_disconnections: 0, ...settings },
  };
}

/** The actors of both transports. */
export function castFor(
  chain: RebootChain,
  mode: Mode,
  make: (context: ActorContext) => Actor[],
): { context: ActorContext; actor: Actor }[] {
  return [false, true].flatMap((unix) => {
    const context: ActorContext = { chain, unix, database: 'postgres', session: mode === 'session' };
    return make(context).map((actor) => ({ context, actor }));
  });
}
