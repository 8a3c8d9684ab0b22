/*
 * Makes X.509 certificates, because Node can only read them and tests should not need the openssl command. Contains
 * just enough DER (ITU-T X.690) for RFC 5280. Called by certs.ts.
 */
import { constants, createHash, createPublicKey, type KeyObject, randomBytes, sign } from 'node:crypto';
import { isIPv6 } from 'node:net';

/** Subject of a certificate: organisation and common name. */
export interface Name {
  o: string;
  cn: string;
}

export interface Statement {
  issuer: Name;
  subject: Name;
  publicKey: KeyObject;
  notBefore: Date;
  notAfter: Date;
  /** may sign other certificates */
  authority: boolean;
  /** as `DNS:localhost,IP:127.0.0.1` */
  san?: string;
  /** of the signature, sha256 by default */
  digest?: Digest;
}

export type Digest = 'sha1' | 'sha256' | 'sha512';

const Tag = { BOOLEAN: 1, INTEGER: 2, BITS: 3, BYTES: 4, OID: 6, UTF8: 0x0c, TIME: 0x18, SEQUENCE: 0x30, SET: 0x31 };
/** Context-specific tags: of a primitive value, of a constructed one. */
const plainTag = (number: number) => 0x80 + number;
const outerTag = (number: number) => 0xa0 + number;

const Oid = {
  commonName: [2, 5, 4, 3],
  organization: [2, 5, 4, 10],
  subjectKeyId: [2, 5, 29, 14],
  keyUsage: [2, 5, 29, 15],
  subjectAltName: [2, 5, 29, 17],
  basicConstraints: [2, 5, 29, 19],
  authorityKeyId: [2, 5, 29, 35],
  ed25519: [1, 3, 101, 112],
  rsaPss: [1, 2, 840, 113549, 1, 1, 10],
  mgf1: [1, 2, 840, 113549, 1, 1, 8],
};

const DIGESTS: Record<Digest, { hash: number[]; withEcdsa: number[]; withRsa: number[]; length: number }> = {
  sha1: {
    hash: [1, 3, 14, 3, 2, 26],
    withEcdsa: [1, 2, 840, 10045, 4, 1],
    withRsa: [1, 2, 840, 113549, 1, 1, 5],
    length: 20,
  },
  sha256: {
    hash: [2, 16, 840, 1, 101, 3, 4, 2, 1],
    withEcdsa: [1, 2, 840, 10045, 4, 3, 2],
    withRsa: [1, 2, 840, 113549, 1, 1, 11],
    length: 32,
  },
  sha512: {
    hash: [2, 16, 840, 1, 101, 3, 4, 2, 3],
    withEcdsa: [1, 2, 840, 10045, 4, 3, 4],
    withRsa: [1, 2, 840, 113549, 1, 1, 13],
    length: 64,
  },
};

function der(tag: number, ...parts: Buffer[]): Buffer {
  const body = Buffer.concat(parts);
  if (body.length < 0x80) return Buffer.concat([Buffer.from([tag, body.length]), body]);
  const digits = body.length.toString(16);
  const length = Buffer.from(digits.length % 2 === 0 ? digits : `0${digits}`, 'hex');
  return Buffer.concat([Buffer.from([tag, 0x80 + length.length]), length, body]);
}

function base128(value: number): number[] {
  const bytes = [value & 0x7f];
  for (let rest = value >>> 7; rest > 0; rest >>>= 7) bytes.unshift(0x80 | (rest & 0x7f));
  return bytes;
}

function oid(numbers: number[]): Buffer {
  const [first = 0, second = 0, ...rest] = numbers;
  return der(Tag.OID, Buffer.from([40 * first + second, ...rest.flatMap(base128)]));
}

function bits(body: Buffer, unused = 0): Buffer {
  return der(Tag.BITS, Buffer.from([unused]), body);
}

function time(when: Date): Buffer {
  const text = `${when.toISOString().replace(/[-:T]|\.\d+/g, '')}`;
  return der(Tag.TIME, Buffer.from(text, 'latin1'));
}

function name({ o, cn }: Name): Buffer {
  const part = (type: number[], text: string) =>
    der(Tag.SET, der(Tag.SEQUENCE, oid(type), der(Tag.UTF8, Buffer.from(text))));
  return der(Tag.SEQUENCE, part(Oid.organization, o), part(Oid.commonName, cn));
}

function addressBytes(text: string): Buffer {
  if (!isIPv6(text)) return Buffer.from(text.split('.').map(Number));
  const [head = '', tail] = text.split('::');
  const groups = (part: string | undefined) => (part === undefined || part === '' ? [] : part.split(':'));
  const missing = 8 - groups(head).length - groups(tail).length;
  const all = [...groups(head), ...Array<string>(missing).fill('0'), ...groups(tail)];
  return Buffer.from(all.map((group) => group.padStart(4, '0')).join(''), 'hex');
}

function altNames(san: string): Buffer {
  const names = san.split(',').map((entry) => {
    const colon = entry.indexOf(':');
    const value = entry.slice(colon + 1);
    if (entry.startsWith('DNS:')) return der(plainTag(2), Buffer.from(value, 'latin1'));
    if (entry.startsWith('IP:')) return der(plainTag(7), addressBytes(value));
    throw new Error(`neither DNS: nor IP: ${entry}`);
  });
  return der(Tag.SEQUENCE, ...names);
}

function extension(type: number[], critical: boolean, value: Buffer): Buffer {
  const flag = critical ? [der(Tag.BOOLEAN, Buffer.from([0xff]))] : [];
  return der(Tag.SEQUENCE, oid(type), ...flag, der(Tag.BYTES, value));
}

function keyId(key: KeyObject): Buffer {
  return createHash('sha1')
    .update(key.export({ type: 'spki', format: 'der' }))
    .digest();
}

function extensions(statement: Statement, signer: KeyObject): Buffer {
  const { authority, san, publicKey } = statement;
  const list = [
    extension(Oid.subjectKeyId, false, der(Tag.BYTES, keyId(publicKey))),
    extension(Oid.authorityKeyId, false, der(Tag.SEQUENCE, der(plainTag(0), keyId(createPublicKey(signer))))),
  ];
  if (authority) {
    const yes = der(Tag.BOOLEAN, Buffer.from([0xff]));
    list.push(extension(Oid.basicConstraints, true, der(Tag.SEQUENCE, yes)));
    // keyCertSign and cRLSign
    list.push(extension(Oid.keyUsage, true, bits(Buffer.from([0x06]), 1)));
  }
  if (san !== undefined) list.push(extension(Oid.subjectAltName, false, altNames(san)));
  return der(Tag.SEQUENCE, ...list);
}

/** How a key signs, as in a certificate (RFC 4055, RFC 8410). */
function algorithmOf(signer: KeyObject, digest: Digest): Buffer {
  const { hash, withEcdsa, withRsa, length } = DIGESTS[digest];
  switch (signer.asymmetricKeyType) {
    case 'ed25519':
      return der(Tag.SEQUENCE, oid(Oid.ed25519));
    case 'rsa':
      return der(Tag.SEQUENCE, oid(withRsa), der(5));
    case 'rsa-pss': {
      const hashed = der(Tag.SEQUENCE, oid(hash));
      const mask = der(Tag.SEQUENCE, oid(Oid.mgf1), hashed);
      const salt = der(Tag.INTEGER, Buffer.from([length]));
      const options = [der(outerTag(0), hashed), der(outerTag(1), mask), der(outerTag(2), salt)];
      return der(Tag.SEQUENCE, oid(Oid.rsaPss), der(Tag.SEQUENCE, ...options));
    }
    default:
      return der(Tag.SEQUENCE, oid(withEcdsa));
  }
}

function signature(signed: Buffer, signer: KeyObject, digest: Digest): Buffer {
  if (signer.asymmetricKeyType === 'ed25519') return sign(null, signed, signer);
  const pss = { key: signer, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: DIGESTS[digest].length };
  return sign(digest, signed, signer.asymmetricKeyType === 'rsa-pss' ? pss : signer);
}

/** The certificate as PEM, signed with that private key. */
export function makeCertificate(statement: Statement, signer: KeyObject): string {
  const digest = statement.digest ?? 'sha256';
  const algorithm = algorithmOf(signer, digest);
  // positive, and never zero
  const serial = Buffer.concat([Buffer.from([0x40]), randomBytes(15)]);
  const signed = der(
    Tag.SEQUENCE,
    der(outerTag(0), der(Tag.INTEGER, Buffer.from([2]))),
    der(Tag.INTEGER, serial),
    algorithm,
    name(statement.issuer),
    der(Tag.SEQUENCE, time(statement.notBefore), time(statement.notAfter)),
    name(statement.subject),
    statement.publicKey.export({ type: 'spki', format: 'der' }),
    der(outerTag(3), extensions(statement, signer)),
  );
  const certificate = der(Tag.SEQUENCE, signed, algorithm, bits(signature(signed, signer, digest)));
  const lines = certificate.toString('base64').match(/.{1,64}/g) as string[];
  return ['-----BEGIN CERTIFICATE-----', ...lines, '-----END CERTIFICATE-----', ''].join('\n');
}
