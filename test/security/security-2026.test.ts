/*
 * One test for each CVE fixed in PgBouncer 1.26.0 and 1.26.1, which runs the attack against this pooler. The attacks
 * were:
 *
 * - CVE-2026-19888: a SCRAM client-final-message without r= ended the process, before authentication
 * - CVE-2026-6668: a packet length near 2^31 doubled its buffer endlessly, before authentication
 * - CVE-2026-6669: a server with a huge SCRAM iteration count blocked the pooler
 * - CVE-2026-107350: a second startup packet during SCRAM for a missing database logged in as any user with the
 *   password of another user
 * - CVE-2026-107349: `options=-c=` caused an endless loop if ignore_startup_parameters had words other than `options`
 * - CVE-2026-107348: as CVE-2026-6668 for a length above 2^31, with max_packet_size above that
 *
 * security.test.ts has the earlier CVEs.
 */

import assert from 'node:assert/strict';
import { ADMIN_PASSWORD, ADMIN_USER, type Bouncer, eventually, it, PgCluster } from '../harness';
import { authentication, refusedWith, ScriptedServer, withAttackedPooler } from '../harness/attacked-pooler';
import { after, before } from '../harness/limits';
import {
  cstring,
  errorFields,
  int32,
  letters,
  type Message,
  message,
  PROTOCOL_30,
  PROTOCOL_32,
  type RawClient,
  startupPacket,
} from '../harness/raw-client';
import { ScramClient } from '../harness/scram';

const SCRAM = { auth_type: 'scram-sha-256' };

let cluster: PgCluster;
let liar: ScriptedServer;

before(async () => {
  cluster = await PgCluster.start();
  liar = await ScriptedServer.start();
  await cluster.createUser(ADMIN_USER, ADMIN_PASSWORD);
  await cluster.createUser('seeker', 'seeker-password');
});

after(async () => {
  await liar?.stop();
  await cluster?.stop();
});

/** Checks that another client is served, so the loop is not stuck. */
async function serves(bouncer: Bouncer): Promise<void> {
  assert.equal((await bouncer.admin('SHOW VERSION')).length, 1);
}

function initialResponse(text: string): Buffer {
  const bytes = Buffer.from(text, 'latin1');
  return message('p', cstring('SCRAM-SHA-256'), int32(bytes.length), bytes);
}

/* ---- CVE-2026-19888 ---- */

const FINALS = [
  '',
  'c=biws',
  'c=biws,',
  'c=biws,p=AAAA',
  'c=biws,r',
  'c=biws,r,p=AAAA',
  'c=biws,x=1,p=AAAA',
  'c=biws,,p=AAAA',
  'p=AAAA',
  'r=nonce,p=AAAA',
];

for (const [who, user, database] of [
  ['a known user', 'seeker', 'postgres'],
  ['an unknown user', 'ghost', 'postgres'],
  ['an unknown database', 'seeker', 'nowhere'],
  ['the console', ADMIN_USER, 'pgbouncer'],
] as const) {
  it(`CVE-2026-19888: a client-final-message without its nonce is refused (${who})`, () =>
    withAttackedPooler(
      cluster,
      { settings: SCRAM, userlist: { seeker: 'seeker-password' }, databases: { postgres: cluster.connstr() } },
      async (bouncer) => {
        for (const final of FINALS) {
          const client = await bouncer.raw();
          await client.startup({ user, database });
          assert.equal((await client.next())?.body.readInt32BE(0), 10);
          await client.send(initialResponse('n,,n=,r=abcdefghijklmnopqrstuvwx'));
          assert.equal((await client.next())?.body.readInt32BE(0), 11, 'the exchange goes on to its last message');
          await client.sendMessage('p', Buffer.from(final));
          await refusedWith(client, 'SASL authentication failed');
        }
        await bouncer.logWait(/malformed SCRAM message \(attribute "r" expected\)/);
        await serves(bouncer);
      },
    ));
}

/* ---- CVE-2026-6668 and CVE-2026-107348 ---- */

const HUGE = [0x2000_0001, 0x4000_0001, 0x7fff_fff0, 0x7fff_fffe, 0x7fff_ffff];
const ABOVE = [0x8000_0000, 0x8000_0001, 0x8000_0004, 0xc000_0000, 0xffff_fff0, 0xffff_fffe, 0xffff_ffff];

async function claimLengths(bouncer: Bouncer, lengths: readonly number[]): Promise<void> {
  for (const length of lengths) {
    for (const type of ['p', 'Q', 'P', 'd', '\x00']) {
      // five bytes only, as the first packet, and where a password is expected
      const bare = await bouncer.raw();
      await bare.send(Buffer.from(type, 'latin1'), int32(length), Buffer.alloc(type === '\x00' ? 3 : 0));
      await refusedWith(bare, /^bad packet header/);
      const asked = await bouncer.raw();
      await asked.startup({ user: 'seeker', database: 'postgres' });
      assert.equal((await asked.next())?.type, 'R');
      await asked.send(Buffer.from(type, 'latin1'), int32(length), Buffer.alloc(type === '\x00' ? 3 : 0));
      await refusedWith(asked, /^bad packet header/);
    }
  }
  await serves(bouncer);
}

/**
 * Checks that a logged-in client may claim that length for forwarded packets, but not for packets that are reassembled.
 */
async function claimStatements(bouncer: Bouncer, lengths: readonly number[], reason: RegExp): Promise<void> {
  for (const length of lengths) {
    const client = await bouncer.raw();
    await client.login({ user: 'seeker', password: 'seeker-password' });
    await client.send(Buffer.from('P'), int32(length), cstring('name'), Buffer.alloc(40_000, 0x20));
    await refusedWith(client, reason);
  }
  await serves(bouncer);
}

const POOLED = { ...SCRAM, pool_mode: 'transaction', max_prepared_statements: 10 };

it('CVE-2026-6668: a packet length near 2^31 reserves nothing, with the default max_packet_size', () =>
  withAttackedPooler(cluster, { settings: POOLED, userlist: { seeker: 'seeker-password' } }, async (bouncer) => {
    await claimLengths(bouncer, HUGE);
    await claimStatements(bouncer, HUGE, /too large packet|bad packet header/);
  }));

it('CVE-2026-107348: a packet length above 2^31 reserves nothing, with the largest max_packet_size', () =>
  withAttackedPooler(
    cluster,
    { settings: { ...POOLED, max_packet_size: 4294967295 }, userlist: { seeker: 'seeker-password' } },
    async (bouncer) => {
      await claimLengths(bouncer, [...HUGE, ...ABOVE]);
      await claimStatements(bouncer, ABOVE, /too large packet|bad packet header/);
    },
  ));

/* ---- CVE-2026-6669 ---- */

it('CVE-2026-6669: a server’s iteration count above a million is refused', () =>
  withAttackedPooler(
    cluster,
    {
      databases: { '*': `host=127.0.0.1 port=${liar.port} user=seeker password=seeker-password` },
      settings: { server_tls_sslmode: 'disable' },
    },
    async (bouncer) => {
      const counts = ['1000001', '2147483647', '2147483648', '4294967296', '4294971392', '9223372036854775807', '1e9'];
      for (const [index, count] of [...counts, '4096'].entries()) {
        let last: string | undefined;
        liar.play(`count${index}`, async ({ socket, next }) => {
          socket.write(authentication(10, cstring('SCRAM-SHA-256'), Buffer.alloc(1)));
          const nonce = /r=(.*)$/s.exec((await next())?.body.toString('latin1') ?? '')?.[1] ?? '';
          socket.write(authentication(11, Buffer.from(`r=${nonce}x,s=MDEyMzQ1Njc4OWFiY2RlZg==,i=${count}`)));
          last = (await next())?.type ?? 'end';
          socket.end();
        });
        const client = await bouncer.raw();
        await client.startup({ user: 'postgres', database: `count${index}` });
        await eventually(`the pooler to answer or to leave (${count})`, () => last !== undefined);
        assert.equal(last, count === '4096' ? 'p' : 'end', count);
        await client.destroy();
      }
      await serves(bouncer);
    },
  ));

/* ---- CVE-2026-107350 ---- */

interface Login {
  user: string;
  database: string;
}

const NOWHERE: Login = { user: 'seeker', database: 'nowhere' };
const REAL: Login = { user: 'seeker', database: 'postgres' };

/** The point in the exchange of the first login at which the second startup packet is sent. */
type Moment = 'behind the first' | 'behind the request' | 'behind the challenge' | 'with the proof';

const isChallenge = (msg: Message): boolean => msg.type === 'R' && msg.body.readInt32BE(0) === 11;

/**
 * Logs in as seeker, whose password is known, and sends a second startup packet with another user meanwhile. A
 * vulnerable pooler would accept it and log in the other user.
 * @returns all messages received, up to an error or to ReadyForQuery
 */
async function changeMind(
  bouncer: Bouncer,
  first: Login,
  second: Login,
  moment: Moment,
  version: number,
): Promise<Message[]> {
  const client = await bouncer.raw();
  const again = startupPacket(version, { ...second });
  const scram = new ScramClient('seeker-password');
  const answer: Message[] = [];
  const until = async (wanted: (msg: Message) => boolean): Promise<Message | null> => {
    for (;;) {
      const msg = await client.next();
      if (msg === null) return null;
      answer.push(msg);
      if (msg.type === 'E') return null;
      if (wanted(msg)) return msg;
    }
  };
  await client.send(startupPacket(version, { ...first }), moment === 'behind the first' ? again : Buffer.alloc(0));
  await until((msg) => msg.type === 'R');
  if (moment === 'behind the request') await client.send(again);
  await client.send(initialResponse(scram.first()));
  const challenge = await until(isChallenge);
  if (challenge !== null) {
    if (moment === 'behind the challenge') await client.send(again);
    const proof = message('p', Buffer.from(scram.final(challenge.body.toString('latin1', 4)), 'latin1'));
    await client.send(proof, moment === 'with the proof' ? again : Buffer.alloc(0));
    await until((msg) => msg.type === 'Z');
    // the client has logged in as itself, and has then sent an unknown packet
    if (first === REAL && moment === 'with the proof') await until(() => false);
  }
  await client.destroy();
  return answer;
}

for (const version of [PROTOCOL_30, PROTOCOL_32]) {
  it(`CVE-2026-107350: no second startup packet changes who has logged in (3.${version & 0xffff})`, () =>
    withAttackedPooler(
      cluster,
      { settings: SCRAM, userlist: { seeker: 'seeker-password', victim: 'victim-password' } },
      async (bouncer) => {
        const others: Login[] = [
          { user: ADMIN_USER, database: 'pgbouncer' },
          { user: 'victim', database: 'postgres' },
          { user: 'victim', database: 'nowhere' },
          { user: 'ghost', database: 'postgres' },
        ];
        const moments: Moment[] = ['behind the challenge', 'behind the first', 'behind the request', 'with the proof'];
        for (const first of [NOWHERE, REAL, { user: 'seeker', database: 'pgbouncer' }]) {
          for (const second of others) {
            for (const moment of moments) {
              const from = bouncer.log.mark();
              const what = `${first.user}@${first.database}, then ${second.user}@${second.database} ${moment}`;
              // seeker may log in to an existing database; the packet behind the proof is then unknown
              const mayEnter = first === REAL && moment === 'with the proof';
              const answer = await changeMind(bouncer, first, second, moment, version);
              const error = answer.find((msg) => msg.type === 'E');
              const text = error === undefined ? '' : errorFields(error).M;
              if (!mayEnter) {
                assert.ok(!letters(answer).includes('Z'), `let in: ${what}`);
                if (moment !== 'with the proof' && first.database !== 'pgbouncer') {
                  assert.equal(text, 'client re-sent startup pkt', what);
                }
              }
              assert.ok(error !== undefined, what);
              for (const name of [ADMIN_USER, 'victim']) {
                assert.equal(bouncer.log.count(new RegExp(`login attempt: db=\\S+ user=${name}`), from), 0, what);
              }
            }
          }
        }
      },
    ));
}

it('CVE-2026-107350: no second startup packet is accepted while auth_query runs for the first', () =>
  withAttackedPooler(
    cluster,
    {
      settings: {
        ...SCRAM,
        auth_user: 'postgres',
        auth_query: 'SELECT usename, passwd FROM pg_shadow, pg_sleep(0.3) WHERE usename = $1',
      },
      userlist: { postgres: '' },
    },
    async (bouncer) => {
      const second = startupPacket(PROTOCOL_30, { user: ADMIN_USER, database: 'pgbouncer' });
      const together = await bouncer.raw();
      await together.send(startupPacket(PROTOCOL_30, { user: 'seeker', database: 'postgres' }), second);
      assert.equal((await together.next())?.type, 'R', 'seeker is asked');
      await refusedWith(together, 'client re-sent startup pkt');
    },
  ));

/* ---- CVE-2026-107349 ---- */

const EMPTY_NAMES = ['-c=', '-c =', '--=', '-c=1', '--=1', '-c= -c=', '-c=\\ x', '--= --='];

for (const ignored of ['extra_float_digits', 'extra_float_digits, work_mem', 'a,,b', ',', ', ,', ' ', 'a,', ',a']) {
  it(`CVE-2026-107349: an option without a name is refused, with ignore_startup_parameters = '${ignored}'`, () =>
    withAttackedPooler(cluster, { settings: { ignore_startup_parameters: ignored } }, async (bouncer) => {
      for (const options of EMPTY_NAMES) {
        const client = await bouncer.raw();
        await client.startup({ user: 'postgres', database: 'postgres', options });
        await refusedWith(client, /^unsupported (startup parameter in options: |options startup parameter)/);
      }
      await serves(bouncer);
    }));
}

it('CVE-2026-107349: an option without a name is skipped if options are ignored', () =>
  withAttackedPooler(cluster, { settings: { ignore_startup_parameters: 'options' } }, async (bouncer) => {
    for (const options of EMPTY_NAMES) {
      const client: RawClient = await bouncer.raw();
      const answer = await client.login({ params: { options } });
      assert.equal(answer.at(-1)?.type, 'Z', options);
      await client.end();
    }
  }));
