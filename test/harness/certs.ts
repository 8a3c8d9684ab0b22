/*
 * Certificates for one test file, generated at run time: CAs and the certificates that they sign.
 */

import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, X509Certificate } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { giveTo } from '../../tools/unprivileged';
import { tempDir, user } from './machine';
import { type Digest, makeCertificate, type Name, type Statement } from './x509';

/** Files of a certificate and its key. */
export interface Cert {
  cert: string;
  key: string;
}

/** The contents of a certificate. */
interface Subject {
  cn: string;
  /** as `DNS:localhost,IP:127.0.0.1` */
  san?: string;
  /** 'ec' (default) or 'rsa' */
  keyType?: 'ec' | 'rsa';
  /** days of validity, 2 by default; negative: expired */
  days?: number;
}

const DAY_MS = 24 * 60 * 60 * 1000;
const ORGANIZATION = 'tests';

function newKey(type: 'ec' | 'rsa' | 'rsa-pss' | 'ed25519'): KeyObject {
  if (type === 'ed25519') return generateKeyPairSync('ed25519').privateKey;
  if (type === 'rsa-pss') return generateKeyPairSync('rsa-pss', { modulusLength: 2048 }).privateKey;
  if (type === 'rsa') return generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey;
  return generateKeyPairSync('ec', { namedCurve: 'prime256v1' }).privateKey;
}

/** Validity from yesterday, or from two days before the expiry. */
function validity(days: number): Pick<Statement, 'notBefore' | 'notAfter'> {
  const now = Date.now();
  const notAfter = now + days * DAY_MS;
  return { notBefore: new Date(Math.min(now, notAfter - DAY_MS) - DAY_MS), notAfter: new Date(notAfter) };
}

/** The subject of a certificate, for use as issuer. */
function nameIn(certFile: string): Name {
  const { subject } = new X509Certificate(readFileSync(certFile));
  return { o: ORGANIZATION, cn: /^CN=(.*)$/m.exec(subject)?.[1] as string };
}

export class CertFolder {
  readonly dir = tempDir('certs');

  /** Creates a CA of that name. */
  authority(name: string): Cert {
    const key = newKey('ec');
    const self = { o: ORGANIZATION, cn: name };
    const publicKey = createPublicKey(key);
    const statement = { issuer: self, subject: self, publicKey, authority: true, ...validity(2) };
    return this.write(name, key, makeCertificate(statement, key));
  }

  /** Creates a certificate that signs itself, with a key of that type. */
  selfSigned(name: string, keyType: 'ec' | 'rsa' | 'rsa-pss' | 'ed25519', digest: Digest = 'sha256'): Cert {
    const key = newKey(keyType);
    const self = { o: ORGANIZATION, cn: 'localhost' };
    const statement = { issuer: self, subject: self, publicKey: createPublicKey(key), authority: false, digest };
    return this.write(name, key, makeCertificate({ ...statement, ...validity(2) }, key));
  }

  /** Creates a certificate signed by `ca`, in files of that name, which are replaced if they exist. */
  issue(ca: Cert, name: string, subject: Subject): Cert {
    const key = newKey(subject.keyType ?? 'ec');
    const statement: Statement = {
      issuer: nameIn(ca.cert),
      subject: { o: ORGANIZATION, cn: subject.cn },
      publicKey: createPublicKey(key),
      authority: false,
      ...validity(subject.days ?? 2),
      ...(subject.san === undefined ? {} : { san: subject.san }),
    };
    return this.write(name, key, makeCertificate(statement, createPrivateKey(readFileSync(ca.key))));
  }

  private write(name: string, key: KeyObject, certificate: string): Cert {
    const made = { cert: join(this.dir, `${name}.crt`), key: join(this.dir, `${name}.key`) };
    writeFileSync(made.key, key.export({ type: 'pkcs8', format: 'pem' }), { mode: 0o600 });
    writeFileSync(made.cert, certificate);
    giveTo(user, this.dir);
    return made;
  }
}

/** Newer versions of OpenSSL refuse suites with short tags (CCM8), except at this security level. */
const ANY_LEVEL = '@SECLEVEL=0';

/** Names of suites of TLS 1.3 are no part of the list that sets the level. */
function listWith(name: string): string {
  return `${name.startsWith('TLS_') ? 'DEFAULT' : name}:${ANY_LEVEL}`;
}

/** The option `ciphers` of Node with one suite, by OpenSSL's name. */
export function onlySuite(name: string): string {
  return name.startsWith('TLS_') ? `${name}:${listWith(name)}` : listWith(name);
}

/** The settings with one suite to clients or servers. */
export function suiteSettings(side: 'client' | 'server', name: string): Record<string, string> {
  const list = { [`${side}_tls_ciphers`]: listWith(name) };
  return name.startsWith('TLS_') ? { ...list, [`${side}_tls13_ciphers`]: name } : list;
}
