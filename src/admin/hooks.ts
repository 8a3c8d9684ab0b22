/*
 * What the console asks of parts that may be missing from a build: TLS. They fill this slot when they start; until then
 * the answers are those of a pooler without them.
 */
import type { PgSocket } from '../core/pool/socket';
import { preparedCount } from '../core/pool/statements';

export const consoleHooks: {
  /** Applies changed TLS settings. @returns false when they cannot be applied and the old ones stay */
  tlsSetup: () => boolean;
  isTls: (sk: PgSocket) => boolean;
  /** protocol and cipher as SHOW prints them, '' without TLS */
  tlsInfo: (sk: PgSocket) => string;
  /** prepared statements known on this connection */
  preparedCount: (sk: PgSocket) => number;
} = {
  tlsSetup: () => true,
  isTls: () => false,
  tlsInfo: () => '',
  preparedCount,
};
