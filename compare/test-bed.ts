/*
 * Set-up that all scenarios share: a PostgreSQL server with its users, servers with and without TLS, certificates,
 * slapd, PAM rules, and the features of the installed PgBouncer. Created once, removed at the end. Called by main.ts.
 */

import { chmodSync, readFileSync, writeFileSync } from 'node:fs';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import { PgCluster, tempDir, user } from '../test/harness';
import { CertFolder } from '../test/harness/certs';
import { BASE_DN, Directory, noSlapd } from '../test/harness/directory';
import { pamMissing, removePamRules, writePamRules } from '../test/harness/pam';
import { giveTo } from '../tools/unprivileged';
import { type FrontOptions, TlsFront } from './tls-fronts';

/** Features that PgBouncer may have been built without, or that the machine may lack. */
export type Need = 'ldap' | 'pam';

/** The user that runs this, for peer authentication. */
export const ME = userInfo().username;

/** Users that PostgreSQL authenticates, with the method; all other users are trusted. */
const SERVER_USERS = [
  { name: 's_plain', method: 'password', secret: 'scram' },
  { name: 's_md5', method: 'md5', secret: 'md5' },
  { name: 's_scram', method: 'scram-sha-256', secret: 'scram' },
  { name: 's_reject', method: 'reject', secret: 'scram' },
] as const;
/** Users that PostgreSQL trusts, so that only the pooler checks their passwords. */
const TRUSTED_USERS = ['c_plain', 'c_md5', 'c_scram', 'c_empty', 'alice', 'bob', 'lucy', 'p_user'];

/** An unused port of 127.0.0.1, outside the kernel's range, in which it could become used during a run. */
const DEAD_PORT = 1;

async function startCluster(): Promise<PgCluster> {
  const asked = SERVER_USERS.map(({ name, method }) => `host all ${name} 127.0.0.1/32 ${method}`);
  const cluster = await PgCluster.start({
    hba: ['local all all trust', ...asked, 'host all all 127.0.0.1/32 trust'],
    settings: { max_connections: 300 },
  });
  for (const { name, secret } of SERVER_USERS) await cluster.createUser(name, 'secret', secret);
  for (const name of TRUSTED_USERS) await cluster.createUser(name, 'secret');
  if (ME !== cluster.superuser && !TRUSTED_USERS.includes(ME)) await cluster.createUser(ME, 'secret');
  await cluster.sql('CREATE DATABASE second');
  await cluster.sql("CREATE TABLE numbers AS SELECT n, 'text ' || n AS t FROM generate_series(1, 5) n");
  await cluster.sql('GRANT ALL ON numbers TO PUBLIC');
  // for auth_query, in a form that does not change from run to run
  await cluster.sql("CREATE TABLE secrets AS SELECT 'bob' AS name, 'from-query' AS secret");
  await cluster.sql('GRANT SELECT ON secrets TO PUBLIC');
  return cluster;
}

/** The certificates of scenarios: `{certs}/NAME.crt` and `.key`. */
function makeCertificates(): { folder: CertFolder; frontOptions: Record<string, FrontOptions> } {
  const folder = new CertFolder();
  const ca = folder.authority('ca');
  const otherCa = folder.authority('otherca');
  const here = 'DNS:localhost,IP:127.0.0.1';
  const site = folder.issue(ca, 'site', { cn: 'localhost', san: here });
  folder.issue(ca, 'rsasite', { cn: 'localhost', san: here, keyType: 'rsa' });
  folder.issue(ca, 'alice', { cn: 'alice' });
  folder.issue(ca, 'robot', { cn: 'robot', san: 'DNS:robot.example.net' });
  folder.issue(ca, 'oldalice', { cn: 'alice', days: -1 });
  folder.issue(otherCa, 'stranger', { cn: 'alice' });
  folder.issue(ca, 'pooler', { cn: 'pooler' });
  const caText = readFileSync(ca.cert);
  const frontOptions: Record<string, FrontOptions> = {
    tls: { cert: site },
    tlsmoved: { cert: folder.issue(ca, 'elsewhere', { cn: 'elsewhere.example', san: 'DNS:elsewhere.example' }) },
    tlscn: { cert: folder.issue(ca, 'cnonly', { cn: 'localhost' }) },
    tlswild: { cert: folder.issue(ca, 'wild', { cn: 'x', san: 'DNS:*.example.net' }) },
    tlsexpired: { cert: folder.issue(ca, 'expired', { cn: 'localhost', san: here, days: -1 }) },
    tlsstranger: { cert: folder.issue(otherCa, 'unknown', { cn: 'localhost', san: here }) },
    tls12: { cert: site, tls: { maxVersion: 'TLSv1.2' } },
    tlsasks: { cert: site, tls: { requestCert: true, rejectUnauthorized: true, ca: caText } },
    tlsinjects: { cert: site, answer: Buffer.from('Sextra') },
    tlsrefuses: { cert: site, answer: Buffer.from('N') },
    tlserror: { cert: site, answer: Buffer.from('EFATAL: no\0') },
    tlsnonsense: { cert: site, answer: Buffer.from('X') },
  };
  return { folder, frontOptions };
}

/** Lets PAM check passwords with a script: `secret` is right. */
function judgeWithPam(dir: string): void {
  const script = join(dir, 'judge');
  writeFileSync(script, '#!/bin/sh\nread -r password\n[ "$password" = secret ]\n');
  chmodSync(script, 0o755);
  giveTo(user, dir);
  writePamRules(script);
  // also if the process exits early
  process.on('exit', removePamRules);
}

export class TestBed {
  /** values of the placeholders in configs */
  readonly words: Record<string, string> = {};
  /** port number -> name in the transcripts */
  readonly ports: [number, string][] = [];
  private readonly fronts: TlsFront[] = [];
  private readonly dir = tempDir('compare');
  private directory: Directory | null = null;
  /** why PAM cannot be used, or null */
  private withoutPam: string | null = null;

  private constructor(
    readonly cluster: PgCluster,
    private readonly bin: string,
    /** version of PgBouncer, as in `1.18.0` */
    readonly originalVersion: string,
  ) {}

  static async set(bin: string, originalVersion: string): Promise<TestBed> {
    const testBed = new TestBed(await startCluster(), bin, originalVersion);
    const { cluster, words } = testBed;
    testBed.name('pg', cluster.port);
    testBed.name('dead', DEAD_PORT);
    words.pgport = String(cluster.port);
    words.pgsocket = `host=${cluster.socketDir} port=${cluster.port}`;
    const mute = await TlsFront.mute();
    testBed.fronts.push(mute);
    testBed.name('mute', mute.port);
    const { folder, frontOptions } = makeCertificates();
    words.certs = folder.dir;
    for (const [name, how] of Object.entries(frontOptions)) {
      const front = await TlsFront.tls(cluster.port, how);
      testBed.fronts.push(front);
      testBed.name(name, front.port);
      words[`${name}port`] = String(front.port);
    }
    testBed.withoutPam = pamMissing();
    if (testBed.builtWith('libpam') && testBed.withoutPam === null) judgeWithPam(testBed.dir);
    if (testBed.builtWith('libldap') && noSlapd === null) {
      testBed.directory = await Directory.start();
      words.ldapport = String(testBed.directory.port);
      words.ldapsport = String(testBed.directory.tlsPort);
      words.basedn = BASE_DN;
      testBed.ports.push([testBed.directory.port, 'LDAP'], [testBed.directory.tlsPort, 'LDAPS']);
    }
    return testBed;
  }

  /** Environment of every pooler. */
  get env(): NodeJS.ProcessEnv {
    return this.directory?.trust ?? {};
  }

  /** Why scenarios with that need cannot be run, or null. */
  lacks(need: Need): string | null {
    if (!this.builtWith(`lib${need}`)) return `as this original was built without ${need.toUpperCase()}`;
    if (need === 'ldap') return this.directory === null ? 'as this machine has no slapd' : null;
    return this.withoutPam === null ? null : `as ${this.withoutPam}`;
  }

  async clear(): Promise<void> {
    for (const front of this.fronts) front.stop();
    await this.directory?.stop();
    await this.cluster.stop();
  }

  private name(word: string, port: number): void {
    this.words[word] = `host=127.0.0.1 port=${port}`;
    this.ports.push([port, word.toUpperCase()]);
  }

  private builtWith(library: string): boolean {
    return readFileSync(this.bin).includes(library);
  }
}
