/*
 * PostgreSQL's md5 passwords: 'md5' and the hex of MD5(password, user), and on the wire the same once more over that
 * hex and a salt of 4 bytes.
 */
import { createHash } from 'node:crypto';
import { logError, slogError } from '../base/log';
import { PasswordType, passwordType } from './secret';

export { PasswordType, passwordType } from './secret';

/**
 * 'md5' and 32 hex digits.
 * @param text byte string: the password, or the hex of an earlier hash
 * @param salt the user's name (byte string) or the bytes of a salt
 * @returns null when MD5 is not to be had (a machine in FIPS mode); logged
 */
export function pgMd5Encrypt(text: string, salt: string | Uint8Array): string | null {
  try {
    const hash = createHash('md5').update(text, 'latin1');
    if (typeof salt === 'string') hash.update(salt, 'latin1');
    else hash.update(salt);
    return `md5${hash.digest('hex')}`;
  } catch (err) {
    logError(`MD5 authentication failed: ${(err as Error).message}`);
    return null;
  }
}

/**
 * What to answer to a server's md5 request (login_md5_psw).
 * @param stored the user's secret: plain or md5
 * @param user the name the server knows
 * @param salt 4 bytes from the server
 * @returns null when the secret is of another type; logged for `sock`. The caller then ends the pool's logins with
 *   "server login failed: wrong password type"
 */
export function md5Answer(sock: unknown, stored: string, user: string, salt: Uint8Array): string | null {
  let inner: string | null = stored;
  switch (passwordType(stored)) {
    case PasswordType.PLAINTEXT:
      inner = pgMd5Encrypt(stored, user);
      break;
    case PasswordType.MD5:
      break;
    default:
      slogError(sock, 'cannot do MD5 authentication: wrong password type');
      return null;
  }
  return inner === null ? null : pgMd5Encrypt(inner.slice(3), salt);
}
