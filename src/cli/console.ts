/*
 * Where the console of the pooler of a config listens, and who may log in: for `--check --diff` and `top`.
 */

import { PasswordType, passwordType } from '../core/auth/secret';
import type { AuthFileUser } from '../core/config/authfile';
import { SslMode } from '../core/config/choices';
import { cf } from '../core/config/settings';
import type { ConnInfo, Target } from './connect-info';

/** The database of the console, and the user that the pooler's own user is there. */
export const CONSOLE = 'pgbouncer';
const CONNECT_MS_MAX = 10_000;

/**
 * How the console can be reached: as the pooler's own user by its Unix socket, or with a known password.
 * @param users of auth_file
 */
export function waysIn(users: AuthFileUser[]): ConnInfo[] {
  const sockets = cf.unixSocketDir === '' ? [] : [`${cf.unixSocketDir.replace(/^@/, '\0')}/.s.PGSQL.${cf.listenPort}`];
  const address = cf.listenAddr.split(',')[0]?.trim() ?? '';
  const host = ['*', '0.0.0.0', '::'].includes(address) ? 'localhost' : address;
  const target = (socketPath: string | null, password: string | null): Target => {
    return { host, address: host, port: cf.listenPort, socketPath, password, storedSecret: true };
  };
  const info = (user: string, targets: Target[]): ConnInfo => ({
    targets,
    user,
    sslmode: cf.clientTlsSslmode >= SslMode.REQUIRE ? 'require' : 'disable',
    sslrootcert: '',
    sslcert: '',
    sslkey: '',
    connectTimeoutMs: CONNECT_MS_MAX,
    startup: { user, database: CONSOLE },
  });
  const ways = sockets.map((path) => info(CONSOLE, [target(path, null)]));
  for (const name of `${cf.adminUsers},${cf.statsUsers}`.split(/[,\s]+/)) {
    const passwd = users.find((user) => user.name === name)?.passwd ?? '';
    if (name === '' || passwordType(passwd) === PasswordType.SCRAM_SHA_256) continue;
    const paths = host === '' ? sockets : [...sockets, null];
    ways.push(
      info(
        name,
        paths.map((path) => target(path, passwd === '' ? null : passwd)),
      ),
    );
  }
  return ways;
}
