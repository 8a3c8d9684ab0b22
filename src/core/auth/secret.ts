/*
 * Stored secrets: the passwords of users in auth_file, auth_query and the config. A secret is a plain password, an md5
 * hash or a SCRAM-SHA-256 secret; its format alone determines the type.
 */

/** Length in bytes of a SHA-256 digest, and of every SCRAM key. */
export const SCRAM_KEY_LEN = 32;
/** Length of an md5 secret: 'md5' and 32 hex digits. */
export const MD5_PASSWD_LEN = 35;

export const enum PasswordType {
  PLAINTEXT = 0,
  MD5 = 1,
  SCRAM_SHA_256 = 2,
}

/** The data needed to verify a SCRAM login. */
export interface ScramSecret {
  iterations: number;
  /** base64 */
  encodedSalt: string;
  storedKey: Buffer;
  serverKey: Buffer;
}

/** Decodes strict base64 (padded, no white space), like PostgreSQL; null if the text is anything else. */
export function base64Decode(text: string): Buffer | null {
  if (text.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(text)) return null;
  return Buffer.from(text, 'base64');
}

/** C's strtol() of the whole text; null if there are other characters. */
export function parseLong(text: string): number | null {
  return /^[ \t\n\v\f\r]*[+-]?\d+$/.test(text) ? Number(text) : null;
}

/** C's strtok() as PgBouncer uses it: leading delimiters are skipped, an empty rest is no token. */
function makeTokenizer(text: string): (delimiter: string) => string | null {
  let pos = 0;
  return (delimiter) => {
    while (delimiter !== '' && text[pos] === delimiter) pos++;
    if (pos >= text.length) return null;
    let end = delimiter === '' ? -1 : text.indexOf(delimiter, pos);
    if (end < 0) end = text.length;
    const token = text.slice(pos, end);
    pos = end + 1;
    return token;
  };
}

/** The last answer of parseScramSecret(): a login asks several times, and those of a storm mostly have the same user. */
let lastParsed: { text: string; secret: ScramSecret | null } = { text: '', secret: null };

/**
 * Parses `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>` (pg_authid.rolpassword); null for any other
 * format. The keys must not be changed.
 */
export function parseScramSecret(text: string): ScramSecret | null {
  if (!text.includes('SCRAM-SHA-256$')) return null;
  if (lastParsed.text !== text) lastParsed = { text, secret: parseSecret(text) };
  return lastParsed.secret;
}

function parseSecret(secret: string): ScramSecret | null {
  const next = makeTokenizer(secret);
  const scheme = next('$');
  const iterationsText = next(':');
  const encodedSalt = next('$');
  const stored = next(':');
  const server = next('');
  if (scheme !== 'SCRAM-SHA-256' || iterationsText === null || encodedSalt === null) return null;
  if (stored === null || server === null) return null;

  const iterations = parseLong(iterationsText);
  const storedKey = base64Decode(stored);
  const serverKey = base64Decode(server);
  if (iterations === null || base64Decode(encodedSalt) === null) return null;
  if (storedKey?.length !== SCRAM_KEY_LEN || serverKey?.length !== SCRAM_KEY_LEN) return null;
  return { iterations, encodedSalt, storedKey, serverKey };
}

/** The inverse of parseScramSecret(). */
export function formatScramSecret(secret: ScramSecret): string {
  const { iterations, encodedSalt, storedKey, serverKey } = secret;
  return `SCRAM-SHA-256$${iterations}:${encodedSalt}$${storedKey.toString('base64')}:${serverKey.toString('base64')}`;
}

/** The type of a stored password (get_password_type()). */
export function passwordType(stored: string): PasswordType {
  if (stored.length === MD5_PASSWD_LEN && /^md5[0-9a-f]{32}$/.test(stored)) return PasswordType.MD5;
  if (parseScramSecret(stored) !== null) return PasswordType.SCRAM_SHA_256;
  return PasswordType.PLAINTEXT;
}
