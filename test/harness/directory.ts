/*
 * A real slapd for one test file, with two users, plain and TLS ports, and generated certificates. Also a fake LDAP
 * server.
 */

import type { ChildProcess } from 'node:child_process';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { freePort } from '../../tools/postgres';
import { giveTo, spawnAs } from '../../tools/unprivileged';
import { CertFolder } from './certs';
import { dropDir, eventually, executable, howEnded, run, startProgram, tempDir, user, withTimeout } from './machine';
import { RawClient } from './raw-client';

const SLAPD = ['/usr/sbin/slapd', '/usr/libexec/slapd', '/usr/local/libexec/slapd'];
const SCHEMAS = ['/etc/ldap/schema', '/etc/openldap/schema', '/usr/local/etc/openldap/schema'];

export const BASE_DN = 'dc=example,dc=net';
/** The folder of the user deep, whose name is longer than the 256 bytes that PgBouncer before 1.26 allowed. */
export const LONG_DN = `ou=${'a'.repeat(90)},ou=${'b'.repeat(90)},ou=${'c'.repeat(90)},${BASE_DN}`;

/** Why tests with slapd cannot run, or null. */
export const noSlapd =
  SLAPD.some(executable) && SCHEMAS.some((folder) => existsSync(folder)) ? null : 'there is no slapd on this machine';

function folder(dn: string): string {
  return `dn: ${dn}\nobjectClass: organizationalUnit\nou: ${dn.split(/[=,]/)[1]}\n\n`;
}

function entry(dn: string, uid: string, password: string): string {
  const lines = [`dn: ${dn}`, 'objectClass: inetOrgPerson', `uid: ${uid}`, 'sn: x', 'cn: x'];
  return [...lines, `mail: ${uid}@example.net`, `userPassword: ${password}`, '', ''].join('\n');
}

export class Directory {
  private constructor(
    readonly dir: string,
    readonly port: number,
    readonly tlsPort: number,
    private readonly child: ChildProcess,
    private readonly caFile: string,
  ) {}

  /** Environment for a pooler that trusts this directory's certificate. */
  get trust(): NodeJS.ProcessEnv {
    return { LDAPTLS_CACERT: this.caFile };
  }

  static async start(): Promise<Directory> {
    const slapd = SLAPD.find(executable) as string;
    const schemas = SCHEMAS.find((folder) => existsSync(folder)) as string;
    const dir = tempDir('ldap');
    mkdirSync(join(dir, 'db'));
    const certs = new CertFolder();
    const ca = certs.authority('CA');
    const server = certs.issue(ca, 'server', { cn: 'server', san: 'DNS:localhost,IP:127.0.0.1' });
    const conf = [
      ...['core', 'cosine', 'inetorgperson'].map((name) => `include ${schemas}/${name}.schema`),
      'access to attrs=userPassword by anonymous auth by * none',
      'access to * by * read',
      `TLSCertificateFile ${server.cert}`,
      `TLSCertificateKeyFile ${server.key}`,
      `TLSCACertificateFile ${ca.cert}`,
      'database ldif',
      `directory ${dir}/db`,
      `suffix "${BASE_DN}"`,
      '',
    ];
    const ldif = [
      `dn: ${BASE_DN}\nobjectClass: dcObject\nobjectClass: organization\ndc: example\no: x\n\n`,
      entry(`uid=lucy,${BASE_DN}`, 'lucy', 'right'),
      folder(`ou=twins,${BASE_DN}`),
      entry(`cn=one,ou=twins,${BASE_DN}`, 'twin', 'right').replace('cn: x', 'cn: one'),
      entry(`cn=two,ou=twins,${BASE_DN}`, 'twin', 'right').replace('cn: x', 'cn: two'),
      folder(`ou=дом,${BASE_DN}`),
      entry(`uid=жук,ou=дом,${BASE_DN}`, 'жук', 'пароль'),
      ...[LONG_DN.split(',').slice(2), LONG_DN.split(',').slice(1), LONG_DN.split(',')].map((dn) =>
        folder(dn.join(',')),
      ),
      entry(`uid=deep,${LONG_DN}`, 'deep', 'right'),
    ];
    writeFileSync(join(dir, 'slapd.conf'), conf.join('\n'));
    writeFileSync(join(dir, 'data.ldif'), ldif.join(''));
    giveTo(user, dir);
    const added = await run(slapd, ['-T', 'add', '-f', join(dir, 'slapd.conf'), '-l', join(dir, 'data.ldif')]);
    if (added.code !== 0) throw new Error(added.stderr);
    const port = await freePort();
    const tlsPort = await freePort();
    const urls = `ldap://127.0.0.1:${port} ldaps://127.0.0.1:${tlsPort}`;
    const args = ['-d', '0', '-f', join(dir, 'slapd.conf'), '-h', urls];
    const child = startProgram(slapd, args, { cwd: dir, stdio: 'ignore', ...spawnAs(user) });
    await eventually('slapd to listen', async () => {
      if (child.exitCode !== null) throw new Error(`slapd ${howEnded(child)}`);
      const probe = await RawClient.connect({ port }).catch(() => null);
      await probe?.destroy();
      return probe;
    });
    return new Directory(dir, port, tlsPort, child, ca.cert);
  }

  async stop(): Promise<void> {
    const closed = new Promise((settle) => this.child.once('close', settle));
    this.child.kill('SIGTERM');
    await withTimeout(closed, 'slapd to stop');
    dropDir(this.dir);
  }
}

/** A fake LDAP server that handles each connection as the test defines. */
export class FalseDirectory {
  readonly sockets: Socket[] = [];

  private constructor(private readonly server: Server) {}

  static async start(onSocket: (socket: Socket) => void): Promise<FalseDirectory> {
    const server = createServer();
    const directory = new FalseDirectory(server);
    server.on('connection', (socket) => {
      directory.sockets.push(socket);
      socket.on('error', () => {});
      onSocket(socket);
    });
    await new Promise<void>((settle) => server.listen(0, '127.0.0.1', settle));
    return directory;
  }

  get port(): number {
    return (this.server.address() as { port: number }).port;
  }

  async stop(): Promise<void> {
    for (const socket of this.sockets) socket.destroy();
    await new Promise((settle) => this.server.close(settle));
  }
}
