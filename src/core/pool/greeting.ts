/*
 * The parameters that a client is told at its login. Clients of a pool mostly have the same, so a pool keeps what the last
 * one was told.
 */

import { type PoolMode, poolModeMap } from '../config/choices';
import { shownVersion } from '../config/compat';
import { writeParameterStatus } from '../wire/messages';
import { type PktBuf, pktbufTemp } from '../wire/pktbuf';
import { type VarCache, varcacheEach } from './varcache';

/** A longer greeting is not kept, in bytes. */
const KEPT_MAX = 4096;

export interface Greeting {
  /* what it was made from */
  readonly welcome: Uint8Array;
  readonly version: string;
  readonly mode: PoolMode;
  readonly statements: number;
  /** the values of the tracked variables; null = not told */
  readonly values: readonly (string | null)[];

  readonly bytes: Buffer;
}

/** What a greeting needs of its pool. */
interface Greeter {
  welcomeMsg: Uint8Array | null;
  greeting: Greeting | null;
  readonly origVars: VarCache;
}

/**
 * Tells the client about the pooler, as PgBouncer does from 1.26 on. The values are those of this login: a later RELOAD
 * is not reported.
 */
export function writePoolerParameters(buf: PktBuf, mode: PoolMode, statements: number): void {
  writeParameterStatus(buf, 'pgbouncer.version', shownVersion());
  writeParameterStatus(buf, 'pgbouncer.pool_mode', poolModeMap.find(({ value }) => value === mode)?.name ?? '');
  writeParameterStatus(buf, 'pgbouncer.max_prepared_statements', String(statements));
}

/** True if the greeting tells these values. */
function tells(
  values: readonly (string | null)[],
  vars: readonly (string | null)[],
  defaults: readonly (string | null)[],
): boolean {
  for (let i = 0; i < values.length; i++) if (values[i] !== (vars[i] ?? defaults[i] ?? null)) return false;
  return true;
}

/**
 * AuthenticationOk and all parameters of a client that has logged in.
 * @param vars the client's own values
 * @returns bytes that must not be changed
 */
export function greetingOf(
  pool: Greeter,
  vars: readonly (string | null)[],
  mode: PoolMode,
  statements: number,
): Buffer {
  const kept = pool.greeting;
  const welcome = pool.welcomeMsg as Uint8Array;
  const version = shownVersion();
  const same =
    kept !== null &&
    kept.welcome === welcome &&
    kept.version === version &&
    kept.mode === mode &&
    kept.statements === statements;
  if (same && tells(kept.values, vars, pool.origVars.values)) return kept.bytes;
  const values: (string | null)[] = vars.map((value, i) => value ?? pool.origVars.values[i] ?? null);
  const buf = pktbufTemp();
  buf.putBytes(welcome);
  writePoolerParameters(buf, mode, statements);
  varcacheEach(values, (name, value) => writeParameterStatus(buf, name, value));
  const bytes = buf.copy();
  if (bytes.length <= KEPT_MAX) pool.greeting = { welcome, version, mode, statements, values, bytes };
  return bytes;
}
