/*
 * The order of a server's login: a server that omits a step, or sends a message too early, is refused.
 */

import assert from 'node:assert/strict';
import { Bouncer, it } from '../harness';
import { errorIn, login } from '../harness/answers';
import { authentication, ScriptedServer } from '../harness/attacked-pooler';
import { oneRow, READY, WELCOME } from '../harness/hostile/fake-server';
import { after, before, describe } from '../harness/limits';
import { cstring, int32, message } from '../harness/raw-client';

const SASL = authentication(10, cstring('SCRAM-SHA-256'), Buffer.alloc(1));
const SALT = 'MDEyMzQ1Njc4OWFiY2RlZg==';
const PARAMETER = message('S', cstring('server_version'), cstring('15.0'));
const KEY = message('K', int32(4711), int32(42));

let server: ScriptedServer;
let bouncer: Bouncer;

before(async () => {
  server = await ScriptedServer.start();
  bouncer = await Bouncer.start({
    databases: { '*': `host=127.0.0.1 port=${server.port} user=seeker password=seeker-password` },
    // a client that no server serves waits for the timeout, and meanwhile the pooler tries again
    settings: { server_tls_sslmode: 'disable', server_login_retry: 1, client_login_timeout: 3 },
  });
});
after(async () => {
  await bouncer.stop();
  await server.stop();
});

/** Checks that the server is disconnected for the logged reason, and that no client uses it. */
async function refused(database: string, why: RegExp): Promise<void> {
  const from = bouncer.log.text.length;
  const client = await bouncer.raw();
  const answered = client.login({ database });
  await bouncer.logWait(why, from);
  assert.ok(errorIn(await answered) !== null, 'the client was let in');
  await client.destroy();
}

describe('a server that is logging in', () => {
  const early = { ReadyForQuery: READY, ParameterStatus: PARAMETER, BackendKeyData: KEY };
  for (const [name, packet] of Object.entries(early)) {
    it(`a server that sends ${name} before AuthenticationOk is refused`, async () => {
      server.play(name, async ({ socket }) => {
        socket.write(Buffer.concat([packet, WELCOME, oneRow('taken in')]));
      });
      await refused(name, /protocol error: '[ZSK]' before AuthenticationOk/);
    });
  }

  it('a server that sends AuthenticationOk instead of the last SCRAM message is refused', async () => {
    server.play('unfinished', async ({ socket, next }) => {
      socket.write(SASL);
      const nonce = /r=(.*)$/s.exec((await next())?.body.toString('latin1') ?? '')?.[1] ?? '';
      socket.write(authentication(11, Buffer.from(`r=${nonce}x,s=${SALT},i=4096`)));
      await next();
      socket.write(Buffer.concat([WELCOME, oneRow('taken in')]));
    });
    await refused('unfinished', /protocol error: AuthenticationOk before the end of the SCRAM exchange/);
  });

  it('a server that answers the first SCRAM message with AuthenticationOk is refused', async () => {
    server.play('unbegun', async ({ socket, next }) => {
      socket.write(SASL);
      await next();
      socket.write(Buffer.concat([WELCOME, oneRow('taken in')]));
    });
    await refused('unbegun', /protocol error: AuthenticationOk before the end of the SCRAM exchange/);
  });

  const late = { Ok: authentication(0), cleartext: authentication(3), md5: authentication(5, int32(1)), SASL };
  for (const [name, request] of Object.entries(late)) {
    it(`a server that requests authentication (${name}) after AuthenticationOk is refused`, async () => {
      let answers = 0;
      server.play(`late${name}`, async ({ socket, next }) => {
        socket.write(Buffer.concat([authentication(0), request, WELCOME]));
        while ((await next())?.type === 'p') answers++;
      });
      await refused(`late${name}`, /protocol error: 'R' after AuthenticationOk/);
      assert.equal(answers, 0, 'the password was sent');
    });
  }

  it('a server that keeps the order, with a notice in between, is used', async () => {
    const notice = message('N', cstring('SNOTICE'), cstring('C00000'), cstring('Mhello'), Buffer.alloc(1));
    server.play('good', async ({ socket, next }) => {
      socket.write(Buffer.concat([notice, WELCOME]));
      while ((await next())?.type === 'Q') socket.write(oneRow('served'));
    });
    const client = await login(bouncer, { database: 'good' });
    await client.destroy();
  });
});
