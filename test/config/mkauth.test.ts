/*
 * mkauth, which writes an auth_file from a server's roles: its output, how it connects to a server and verifies it, and
 * how it reads libpq's connection strings, environment and password file.
 */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { chmodSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { join } from 'node:path';
import { type ConnInfo, readConnInfo } from '../../src/cli/connect-info';
import { fetchRows } from '../../src/cli/pg-client';
import { plainEnv } from '../../tools/postgres';
import { giveTo } from '../../tools/unprivileged';
import { login, withPooler } from '../harness/answers';
import { CertFolder } from '../harness/certs';
import { PgCluster } from '../harness/cluster';
import { FakeServer, oneRow, READY, type Visit, WELCOME } from '../harness/hostile/fake-server';
import { after, before, describe, runSync } from '../harness/limits';
import { dropDir, installed, it, type Outcome, run, tempDir, user, withTimeout } from '../harness/machine';
import { itUnless, notRoot } from '../harness/needs';
import { cstring, int32, message } from '../harness/raw-client';

const certs = new CertFolder();
const ca = certs.authority('ca');
const otherCa = certs.authority('otherca');
const site = certs.issue(ca, 'site', { cn: 'localhost', san: 'DNS:localhost' });
const reader = certs.issue(ca, 'reader', { cn: 'reader' });

/** Authentication methods of the roles that read pg_authid. */
const HBA = [
  'local all all trust',
  'host all postgres all trust',
  'host all plain all password',
  'host all hashed all md5',
  'host all scram all scram-sha-256',
  'host all nobody_in_particular,ann all trust',
  'hostssl all secure all scram-sha-256',
  'hostnossl all open all scram-sha-256',
  'hostssl all reader all cert',
];

/** A query that needs the same rights as mkauth's; FakeServer can answer its last row. */
const QUERY = "SELECT rolname FROM pg_authid UNION ALL SELECT 'x'";

let dir = '';
let pg: PgCluster;
before(async () => {
  dir = tempDir('mkauth');
  // so that the password file and the certificates of the real user are not used
  process.env.HOME = dir;
  const settings = { ssl: 'on', ssl_cert_file: site.cert, ssl_key_file: site.key, ssl_ca_file: ca.cert };
  pg = await PgCluster.start({ settings, hba: HBA });
  for (const name of ['plain', 'scram', 'secure', 'open', 'reader']) {
    await pg.createUser(name, 'right', 'scram', 'SUPERUSER');
  }
  await pg.createUser('hashed', 'right', 'md5', 'SUPERUSER');
  await pg.createUser('nobody_in_particular', '', 'none');
});
after(async () => {
  await pg.stop();
  dropDir(dir);
});

function mkauth(args: string[], env: NodeJS.ProcessEnv = {}): Promise<Outcome> {
  const { node, mainJs } = installed();
  return run(node, [mainJs, 'mkauth', ...args], { cwd: dir, env: { ...plainEnv(), HOME: dir, ...env } });
}

/** Reads the roles from the server in this process. @returns '' on success, else the text of the error */
async function complaint(connstr: string, env: NodeJS.ProcessEnv = {}): Promise<string> {
  const warnings: string[] = [];
  try {
    const info = readConnInfo(connstr, env, (text) => warnings.push(text));
    const rows = await withTimeout(fetchRows(info, QUERY), `the roles from ${connstr}`);
    assert.deepEqual([rows.at(-1)?.[0], warnings], ['x', []]);
    return '';
  } catch (err) {
    return [...warnings, (err as Error).message].join('\n');
  }
}

const overUnix = () => `host=${pg.socketDir} port=${pg.port} user=postgres dbname=postgres`;
const overTcp = (more: string) => `host=localhost port=${pg.port} dbname=postgres ${more}`;

describe('the user list', () => {
  it('the user list contains every login role, and a pooler can read it', async () => {
    await pg.createUser('ann', 'right', 'scram');
    await pg.sql(`SET password_encryption = md5; CREATE ROLE "o""dd" LOGIN PASSWORD 'x'`);
    await pg.createUser('жук', 'right', 'scram');
    await pg.createUser('gone', 'right', 'scram', `VALID UNTIL '2001-01-01'`);
    await pg.sql('CREATE ROLE grp NOLOGIN');
    const path = join(dir, 'userlist.txt');
    const made = await mkauth([path, overUnix()]);
    assert.deepEqual([made.code, made.stdout, made.stderr], [0, '', '']);
    const text = readFileSync(path, 'utf8');
    assert.match(text, /^"gone" ""$/m);
    assert.match(text, /^"nobody_in_particular" ""$/m);
    assert.match(text, /^"o""dd" "md5[0-9a-f]{32}"$/m);
    assert.ok(text.includes(`"ann" "${await pg.storedSecret('ann')}"\n`));
    assert.ok(text.includes(`"жук" "${await pg.storedSecret('жук')}"\n`));
    assert.doesNotMatch(text, /^"grp"/m);
    assert.equal(statSync(path).mode & 0o777, 0o600);
    const leftovers = readdirSync(dir).filter((name) => name.startsWith('.mkauth'));
    assert.deepEqual(leftovers, []);
    assert.equal(Buffer.from((await mkauth(['-', overUnix()])).stdout, 'latin1').toString(), text);

    await withPooler({ cluster: pg, settings: { auth_type: 'scram-sha-256', auth_file: path } }, async (pooler) => {
      await login(pooler, { user: 'ann', password: 'right' });
    });
  });

  it('the user list is left alone if nothing has changed or the server cannot be reached', async () => {
    const path = join(dir, 'same.txt');
    await mkauth([path, overUnix()]);
    const before = statSync(path);
    await mkauth([path, overUnix()]);
    assert.equal(statSync(path).ino, before.ino);
    const failed = await mkauth([path, `host=${pg.socketDir} port=1 user=postgres`]);
    assert.equal(failed.code, 1);
    const socket = `${pg.socketDir}/.s.PGSQL.1`;
    const reason = 'No such file or directory';
    assert.equal(failed.stderr, `tsbouncer: connection to server on socket "${socket}" failed: ${reason}\n`);
    assert.equal(statSync(path).ino, before.ino);
  });

  it('mkauth fails if the folder of the user list does not exist', async () => {
    const { code, stderr } = await mkauth([join(dir, 'nosuch', 'x'), overUnix()]);
    assert.equal(code, 1);
    assert.match(stderr, /no such file or directory/);
  });

  it('mkauth needs two arguments', async () => {
    const { code, stdout } = await mkauth([join(dir, 'x')]);
    assert.deepEqual([code, stdout], [1, 'usage: mkauth DSTFN CONNSTR\n']);
  });

  it('mkauth needs a role that may read the secrets', async () => {
    const answer = await complaint(overTcp('user=nobody_in_particular'));
    assert.equal(answer, 'ERROR:  permission denied for table pg_authid');
  });
});

describe('a login', () => {
  for (const name of ['plain', 'hashed', 'scram']) {
    it(`mkauth logs in with a ${name} password`, async () => {
      assert.equal(await complaint(overTcp(`user=${name} password=right`)), '');
      assert.match(
        await complaint(overTcp(`user=${name} password=wrong`)),
        new RegExp(`"localhost", port \\d+ failed: FATAL: {2}password authentication failed for user "${name}"$`),
      );
      assert.match(await complaint(overTcp(`user=${name}`)), /failed: fe_sendauth: no password supplied$/);
    });
  }

  it('mkauth uses the first server in the list that accepts connections', async () => {
    const hosts = `host=127.0.0.1,localhost port=1,${pg.port} user=postgres`;
    assert.equal(await complaint(hosts), '');
    const none = await complaint('host=127.0.0.1,nosuch.invalid port=1 user=postgres');
    assert.match(none, /"127\.0\.0\.1", port 1 failed: Connection refused\n/);
    assert.match(
      none,
      /"nosuch\.invalid", port 1 failed: could not translate host name "nosuch\.invalid" to address: /,
    );
  });

  it('mkauth accepts a URI, and uses the environment for missing parameters', async () => {
    assert.equal(await complaint(`postgresql://scram:right@localhost:${pg.port}/postgres`), '');
    const env = { PGHOST: 'localhost', PGPORT: String(pg.port), PGUSER: 'scram', PGDATABASE: 'postgres' };
    assert.equal(await complaint('', { ...env, PGPASSWORD: 'right' }), '');
    assert.match(await complaint('', env), /no password supplied/);
  });

  it('mkauth accepts a connect_timeout of any length', async () => {
    assert.equal(await complaint(overTcp('user=plain password=right connect_timeout=2147484')), '');
  });

  itUnless(notRoot)('mkauth works as a user who has neither a name nor a home', () => {
    const { node, mainJs } = installed();
    const as = { uid: 54321, gid: 54321, cwd: '/', env: { PATH: process.env.PATH ?? '' } };
    const mkauthAs = (connstr: string) => runSync(node, [mainJs, 'mkauth', '-', connstr], as);
    assert.match(mkauthAs(overTcp('user=plain password=right')).stdout, /^"plain" "SCRAM/m);
    assert.match(mkauthAs(overTcp('password=right')).stderr, /^tsbouncer: local user with ID 54321 does not exist$/m);
  });

  it('mkauth reads the password from the password file', async () => {
    const passfile = join(dir, 'pass');
    writeFileSync(passfile, `# none\nlocalhost:1:*:scram:other\nlocalhost:*:postgres:scram:right\n`);
    chmodSync(passfile, 0o600);
    giveTo(user, passfile);
    assert.equal(await complaint(overTcp(`user=scram passfile=${passfile}`)), '');
    assert.match(await complaint(overTcp('user=plain'), { PGPASSFILE: passfile }), /no password supplied/);
    chmodSync(passfile, 0o644);
    const open = await complaint(overTcp('user=scram'), { PGPASSFILE: passfile });
    assert.match(open, /WARNING: password file "\S+" has group or world access; .*\n.*no password supplied/);
  });
});

describe('TLS', () => {
  it('mkauth uses TLS according to sslmode', async () => {
    const secure = overTcp('user=secure password=right');
    const open = overTcp('user=open password=right');
    const refused = /FATAL: {2}no pg_hba\.conf entry for host .*, no encryption$/;
    for (const mode of ['prefer', 'allow', 'require']) assert.equal(await complaint(`${secure} sslmode=${mode}`), '');
    assert.match(await complaint(`${secure} sslmode=disable`), refused);
    for (const mode of ['prefer', 'allow', 'disable']) assert.equal(await complaint(`${open} sslmode=${mode}`), '');
    assert.match(await complaint(`${open} sslmode=require`), /no pg_hba\.conf entry for host .*, SSL encryption$/);
    assert.equal(await complaint(`${open} sslmode=maybe`), 'invalid sslmode value: "maybe"');
  });

  it('mkauth verifies the certificate and its name', async () => {
    const full = overTcp(`user=secure password=right sslmode=verify-full sslrootcert=${ca.cert}`);
    assert.equal(await complaint(full), '');
    const byAddress = full.replace('host=localhost', 'host=127.0.0.1');
    assert.match(await complaint(byAddress), /IP: 127\.0\.0\.1 is not in the cert's list/);
    assert.equal(await complaint(byAddress.replace('verify-full', 'verify-ca')), '');
    assert.equal(await complaint(full.replace('host=localhost', 'host=localhost hostaddr=127.0.0.1')), '');
    for (const mode of ['require', 'verify-ca', 'verify-full']) {
      const wrong = overTcp(`user=secure password=right sslmode=${mode} sslrootcert=${otherCa.cert}`);
      assert.match(await complaint(wrong), /failed: self-signed certificate in certificate chain$/);
    }
    assert.match(await complaint(overTcp('user=secure sslmode=verify-ca')), /no root certificate file/);
  });

  it('mkauth presents its client certificate', async () => {
    const own = overTcp(`user=reader sslcert=${reader.cert} sslkey=${reader.key}`);
    assert.equal(await complaint(own), '');
    assert.match(await complaint(overTcp('user=reader')), /connection requires a valid client certificate/);
  });

  it('mkauth reports a server that does not support TLS', async () => {
    await withServer(welcome, async (fake) => {
      const connstr = `host=127.0.0.1 port=${fake.port} user=postgres`;
      assert.equal(await complaint(`${connstr} sslmode=prefer`), '');
      const required = await complaint(`${connstr} sslmode=require`);
      assert.match(required, /failed: server does not support SSL, but SSL was required$/);
      fake.sslAnswer = () => Buffer.from('Sgarbage');
      const injected = await complaint(`${connstr} sslmode=require`);
      assert.match(injected, /failed: received unencrypted data after SSL response$/);
    });
  });
});

const welcome = async ({ socket, next }: Visit) => {
  socket.write(WELCOME);
  if ((await next())?.type === 'Q') socket.write(oneRow('x'));
};

async function withServer(part: (visit: Visit) => Promise<void>, body: (fake: FakeServer) => Promise<void>) {
  const fake = await FakeServer.start(part);
  try {
    await body(fake);
  } finally {
    await fake.stop();
  }
}

const authentication = (code: number, ...rest: Buffer[]) => message('R', int32(code), ...rest);
const SCRAM = authentication(10, cstring('SCRAM-SHA-256'), Buffer.alloc(1));

/** Answers the first SCRAM message with a valid challenge. */
async function challenge({ socket, next }: Visit): Promise<void> {
  socket.write(SCRAM);
  const nonce = /r=(.*)$/s.exec((await next())?.body.toString('latin1') ?? '')?.[1] ?? '';
  const salt = Buffer.alloc(16).toString('base64');
  socket.write(authentication(11, Buffer.from(`r=${nonce}x,s=${salt},i=4096`)));
  await next();
}

describe('a server that breaks the protocol', () => {
  const cases: Record<string, { part: (visit: Visit) => Promise<void>; text: RegExp }> = {
    'is ready without a login': {
      part: async ({ socket }) => void socket.write(READY),
      text: /expected another message from the server than "Z"/,
    },
    'accepts SCRAM without a proof of its own': {
      part: async (visit) => {
        await challenge(visit);
        visit.socket.write(WELCOME);
      },
      text: /server did not complete authentication/,
    },
    'proves the wrong password': {
      part: async (visit) => {
        await challenge(visit);
        visit.socket.write(authentication(12, Buffer.from(`v=${Buffer.alloc(32).toString('base64')}`)));
      },
      text: /incorrect server signature/,
    },
    'asks for an unknown method': {
      part: async ({ socket }) => void socket.write(authentication(7)),
      text: /authentication method 7 not supported/,
    },
    'announces a message of 2 GB': {
      part: async ({ socket }) => void socket.write(Buffer.concat([Buffer.from('E'), int32(0x7fff_ffff)])),
      text: /invalid length of a message from the server: 2147483647/,
    },
    'disconnects in the middle': {
      part: async ({ socket }) => void socket.end(WELCOME.subarray(0, 20)),
      text: /server closed the connection unexpectedly/,
    },
    'starts a COPY': {
      part: async ({ socket, next }) => {
        socket.write(WELCOME);
        await next();
        socket.write(message('G', Buffer.alloc(3)));
      },
      text: /expected another message from the server than "G"/,
    },
    'sends an incomplete row': {
      part: async ({ socket, next }) => {
        socket.write(WELCOME);
        await next();
        socket.write(message('D', Buffer.from([0, 2]), int32(900)));
      },
      text: /out of (range|bounds)/,
    },
    'is silent': {
      part: async () => {},
      text: /timeout expired/,
    },
  };
  for (const [name, { part, text }] of Object.entries(cases)) {
    it(`mkauth refuses a server that ${name}`, () =>
      withServer(part, async (fake) => {
        const limit = name === 'is silent' ? 'connect_timeout=1' : '';
        const connstr = `host=127.0.0.1 port=${fake.port} user=postgres password=right sslmode=disable ${limit}`;
        assert.match(await complaint(connstr), text);
      }));
  }
});

it('mkauth waits for a silent server once, and tries the next one', async () => {
  let visits = 0;
  const silent = createServer(() => visits++).listen(0, '127.0.0.1');
  await once(silent, 'listening');
  const { port } = silent.address() as AddressInfo;
  const hosts = `host=127.0.0.1,localhost port=${port},${pg.port} dbname=postgres user=plain password=right`;
  assert.equal(await complaint(`${hosts} sslmode=prefer connect_timeout=1`), '');
  assert.equal(visits, 1);
  silent.close();
});

it('mkauth prints nothing of a server that would disturb a terminal', () => {
  const part = async ({ socket }: Visit) => {
    const text = Buffer.from('M\x1b[2J\rno\xc2\x9b1m \xc3\xa9\x07\0', 'latin1');
    socket.end(message('E', cstring('SFATAL'), text, Buffer.alloc(1)));
  };
  return withServer(part, async (fake) => {
    const { code, stderr } = await mkauth(['-', `host=127.0.0.1 port=${fake.port} user=postgres sslmode=disable`]);
    assert.equal(code, 1);
    assert.match(stderr, /failed: FATAL: {3}\[2J no 1m \xc3\xa9 \n$/);
  });
});

describe('a connection string', () => {
  const read = (text: string, env: NodeJS.ProcessEnv = {}): ConnInfo => readConnInfo(text, env, () => {});

  it('connection strings have the quotes and backslashes of libpq', () => {
    const info = read(`  user = 'o\\'neil \\\\ x'\tpassword=a\\ b host='' port=5433 dbname=d`);
    assert.equal(info.user, "o'neil \\ x");
    assert.equal(info.startup.database, 'd');
    assert.equal(info.targets[0]?.password, 'a b');
    assert.match(info.targets[0]?.socketPath ?? '', /^\/(var\/run\/postgresql|tmp)\/\.s\.PGSQL\.5433$/);
  });

  it('a connection string may be a URI', () => {
    const info = read('postgres://u%20x:p%40ss@[::1]:5433,b/d%20b?sslmode=disable&application_name=a%26b', {});
    const targets = info.targets.map(({ host, port, password }) => [host, port, password]);
    assert.deepEqual(targets, [
      ['::1', 5433, 'p@ss'],
      ['b', 5432, 'p@ss'],
    ]);
    assert.deepEqual(info.startup, { user: 'u x', database: 'd b', application_name: 'a&b' });
    assert.equal(info.sslmode, 'disable');
    assert.equal(read('postgresql://', { PGHOST: '/x', PGPORT: '7' }).targets[0]?.socketPath, '/x/.s.PGSQL.7');
    assert.equal(read('postgresql:///d?host=/x').targets[0]?.socketPath, '/x/.s.PGSQL.5432');
    assert.equal(read('host=@x').targets[0]?.socketPath, '\0x/.s.PGSQL.5432');
  });

  it('a connection string overrides the environment, and the default database is the user name', () => {
    const info = read('user=a', { PGUSER: 'b', PGHOST: 'h', PGCONNECT_TIMEOUT: '3' });
    assert.deepEqual([info.user, info.startup.database], ['a', 'a']);
    assert.equal(info.targets[0]?.host, 'h');
    assert.equal(info.connectTimeoutMs, 3000);
  });

  const refused: [string, string | RegExp][] = [
    ['mydb', 'missing "=" after "mydb" in connection info string'],
    ["user='x", 'unterminated quoted string in connection info string'],
    ['colour=red', 'invalid connection option "colour"'],
    ['port=x', 'invalid port number: "x"'],
    ['port=65536', 'invalid port number: "65536"'],
    ['host=a,b,c port=1,2', 'could not match 2 port numbers to 3 hosts'],
    ['host=a,b hostaddr=1.1.1.1', 'could not match 2 host names to 1 hostaddr values'],
    ['connect_timeout=soon', 'invalid integer value "soon" for connection option "connect_timeout"'],
    ['require_auth=scram-sha-256', 'connection option "require_auth" is not supported with value "scram-sha-256"'],
    ['postgresql://a@b/%zz', 'invalid percent-encoded token: "%zz"'],
    ['postgresql://[::1', 'unexpected host specification in URI: "[::1"'],
    ['sslrootcert=system sslmode=require', /^weak sslmode "require"/],
  ];
  for (const [text, why] of refused) {
    it(`the connection string ${text} is refused`, () => {
      assert.throws(
        () => read(text),
        (err: Error) => (typeof why === 'string' ? err.message === why : why.test(err.message)),
      );
    });
  }

  it('mkauth ignores a password file that is a folder or is accessible to other users', () => {
    const warnings: string[] = [];
    const path = join(dir, 'folder');
    mkdirSync(path);
    readConnInfo(`passfile=${path}`, {}, (text) => warnings.push(text));
    assert.deepEqual(warnings, [`WARNING: password file "${path}" is not a plain file`]);
  });

  it('the first matching line of the password file is used', () => {
    const path = join(dir, 'lines');
    writeFileSync(path, ['h\\:x:1:*:u:one', 'h:*:d:u:t\\:w\\\\o:rest', '*:*:*:*:three', ''].join('\n'), {
      mode: 0o600,
    });
    const password = (text: string) => read(`passfile=${path} ${text}`).targets[0]?.password;
    assert.equal(password('host=h:x port=1 user=u'), 'one');
    assert.equal(password('host=h user=u dbname=d'), 't:w\\o');
    assert.equal(password('host=h user=u dbname=e'), 'three');
    assert.equal(password('host=h user=u dbname=e password=given'), 'given');
  });
});
