/* Passwords: md5, SASLprep, SCRAM on both sides, against the RFCs, each other, and broken messages. */

import assert from 'node:assert/strict';
import { md5Answer, pgMd5Encrypt } from '../../src/core/auth/md5';
import { checkMd5Password, checkPlainPassword } from '../../src/core/auth/passwd';
import { saslprep } from '../../src/core/auth/saslprep';
import { type ScramCredentials, ScramState } from '../../src/core/auth/scram';
import * as client from '../../src/core/auth/scram-client';
import * as server from '../../src/core/auth/scram-server';
import {
  base64Decode,
  formatScramSecret,
  PasswordType,
  parseScramSecret,
  passwordType,
} from '../../src/core/auth/secret';
import { logState } from '../../src/core/base/log';
import { test } from '../harness/limits';

logState.quiet = true;

/** 'pencil', from RFC 7677's salt and iterations */
const PENCIL =
  'SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=';

function credentials(passwd: string, name = 'joe'): ScramCredentials {
  return {
    name,
    passwd,
    mockAuth: false,
    dynamicPasswd: false,
    scramClientKey: null,
    scramServerKey: null,
    scramPassthroughValid: false,
    scramVerifier: null,
    scramVerifierFor: '',
  };
}

const utf8 = (text: string): string => Buffer.from(text, 'utf8').toString('latin1');

/** Runs a whole login. @returns the server's state, or the step that failed */
function exchange(ours: ScramCredentials, theirs: ScramCredentials): ScramState | string {
  const c = new ScramState();
  const s = new ScramState();
  const first = server.readClientFirstMessage(s, client.buildClientFirstMessage(c));
  if (first !== null) return first;
  const serverFirst = server.buildServerFirstMessage(s, theirs, 4096);
  if (serverFirst === null) return server.SCRAM_MD5_SECRET;
  const read = client.readServerFirstMessage(c, serverFirst);
  if (read !== null) return read;
  const final = server.readClientFinalMessage(s, client.buildClientFinalMessage(c, ours));
  if (final !== null) return final;
  if (!server.verifyFinalNonce(s)) return 'nonce';
  if (!server.verifyClientProof(s)) return 'proof';
  const last = client.readServerFinalMessage(c, server.buildServerFinalMessage(s));
  if (last !== null) return last;
  return client.verifyServerSignature(c) ? s : 'signature';
}

test('md5 secrets and answers match the reference values', () => {
  assert.equal(pgMd5Encrypt('secret', 'joe'), pgMd5Encrypt('secret', Buffer.from('joe')));
  assert.equal(pgMd5Encrypt('', ''), 'md5d41d8cd98f00b204e9800998ecf8427e');
  assert.equal(pgMd5Encrypt('foo', 'bar'), 'md53858f62230ac3c915f300c664312c63f');
  const salt = Buffer.from([1, 2, 3, 4]);
  const stored = pgMd5Encrypt('secret', 'joe') as string;
  const answer = md5Answer(null, 'secret', 'joe', salt) as string;
  assert.equal(md5Answer(null, stored, 'joe', salt), answer);
  assert.equal(md5Answer(null, PENCIL, 'joe', salt), null);
  assert.ok(checkMd5Password('joe', stored, salt, answer));
  assert.ok(checkMd5Password('joe', 'secret', salt, answer));
  assert.ok(!checkMd5Password('joe', 'secret', Buffer.from([1, 2, 3, 5]), answer));
  assert.ok(!checkMd5Password('joe', '', salt, answer));
  assert.ok(!checkMd5Password('joe', 'secret', salt, 'md5'));
  // who has read a SCRAM secret cannot log in with it
  assert.ok(!checkMd5Password('joe', PENCIL, salt, pgMd5Encrypt(PENCIL.slice(3), salt) as string));
});

test('the type of a stored password is recognised', () => {
  assert.equal(passwordType(PENCIL), PasswordType.SCRAM_SHA_256);
  assert.equal(passwordType(`md5${'0'.repeat(32)}`), PasswordType.MD5);
  assert.equal(passwordType(`md5${'0'.repeat(31)}A`), PasswordType.PLAINTEXT);
  assert.equal(passwordType(''), PasswordType.PLAINTEXT);
  for (const broken of [
    PENCIL.replace('256$', '512$'),
    PENCIL.replace('4096', '4o96'),
    PENCIL.replace('W22Z', 'W2?Z'),
    PENCIL.slice(0, -4),
    PENCIL.replace(/:[^:]*$/, ''),
    'SCRAM-SHA-256$',
  ]) {
    assert.equal(passwordType(broken), PasswordType.PLAINTEXT, broken);
  }
  const parsed = parseScramSecret(PENCIL);
  assert.equal(parsed?.iterations, 4096);
  assert.equal(parsed === null ? '' : formatScramSecret(parsed), PENCIL);
});

test('base64 decoding is strict', () => {
  for (const bad of ['A', 'AA', 'AAA', 'A===', 'AA==AA==', 'A A=', 'AA-_', '====', 'AAA=\n']) {
    assert.equal(base64Decode(bad), null, bad);
  }
  assert.deepEqual(base64Decode('AAE='), Buffer.from([0, 1]));
  assert.deepEqual(base64Decode(''), Buffer.alloc(0));
});

test('a plain password is checked against each type of secret', () => {
  assert.ok(checkPlainPassword('joe', 'pencil', 'pencil'));
  assert.ok(!checkPlainPassword('joe', 'pencil', 'Pencil'));
  assert.ok(checkPlainPassword('bar', 'md53858f62230ac3c915f300c664312c63f', 'foo'));
  assert.ok(!checkPlainPassword('baz', 'md53858f62230ac3c915f300c664312c63f', 'foo'));
  assert.ok(checkPlainPassword('joe', PENCIL, 'pencil'));
  assert.ok(!checkPlainPassword('joe', PENCIL, 'pen'));
  assert.ok(!checkPlainPassword('joe', '', ''));
});

test('SASLprep matches the examples of RFC 4013', () => {
  assert.equal(saslprep(utf8('I\u00adX')), 'IX');
  assert.equal(saslprep('user'), 'user');
  assert.equal(saslprep('USER'), 'USER');
  assert.equal(saslprep(utf8('\u00aa')), 'a');
  assert.equal(saslprep(utf8('\u2168')), 'IX');
  // refused: a control character, and a right-to-left string that ends with a digit
  assert.equal(saslprep(utf8('\u0007\u00e9')), utf8('\u0007\u00e9'));
  assert.equal(saslprep(utf8('\u0627\u0031')), utf8('\u0627\u0031'));
});

test('SASLprep keeps a raw password where PostgreSQL does', () => {
  assert.equal(saslprep('\x07'), '\x07', 'ASCII is never looked at');
  assert.equal(saslprep('\xff\xfe'), '\xff\xfe', 'not UTF-8');
  assert.equal(saslprep('\xed\xa0\x80'), '\xed\xa0\x80', 'a surrogate is not UTF-8');
  assert.equal(saslprep(utf8('\u00ad')), utf8('\u00ad'), 'nothing would be left');
  assert.equal(saslprep(utf8('a\u00a0b\u200bc')), 'a b c');
  assert.equal(saslprep(utf8('e\u0301')), utf8('\u00e9'));
  assert.equal(saslprep(utf8('\u{1f600}')), utf8('\u{1f600}'), 'unassigned in Unicode 3.2');
  // acceptable after normalisation, but PostgreSQL checks before it
  assert.equal(saslprep(utf8('\u{1f100}')), utf8('\u{1f100}'));
  assert.equal(saslprep(utf8('a\u0340')), utf8('a\u0340'));
  assert.equal(saslprep(utf8('\u05d0\u2100\u05d0')), utf8('\u05d0a/c\u05d0'));
});

test('SCRAM matches the exchange of RFC 7677', () => {
  const bare = 'n=user,r=rOprNGfwEbeRWgbNEkqO';
  const nonce = 'rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0';
  const serverFirst = `r=${nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096`;
  const clientFinal = `c=biws,r=${nonce},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=`;
  const serverFinal = 'v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=';

  const c = new ScramState();
  c.clientNonce = 'rOprNGfwEbeRWgbNEkqO';
  c.clientFirstMessageBare = bare;
  assert.equal(client.readServerFirstMessage(c, serverFirst), null);
  assert.equal(client.buildClientFinalMessage(c, credentials('pencil')), clientFinal);
  assert.equal(client.readServerFinalMessage(c, serverFinal), null);
  assert.ok(client.verifyServerSignature(c));

  const s = new ScramState();
  assert.equal(server.readClientFirstMessage(s, `n,,${bare}`), null);
  assert.ok(
    server.buildServerFirstMessage(s, credentials(PENCIL), 4096)?.endsWith(',s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096'),
  );
  s.serverNonce = nonce.slice(20);
  s.serverFirstMessage = serverFirst;
  assert.equal(server.readClientFinalMessage(s, clientFinal), null);
  assert.ok(server.verifyFinalNonce(s));
  assert.ok(server.verifyClientProof(s));
  assert.equal(server.buildServerFinalMessage(s), serverFinal);
});

test('SCRAM succeeds between the two sides of the pooler exactly with the right password', () => {
  assert.ok(exchange(credentials('pencil'), credentials(PENCIL)) instanceof ScramState);
  assert.ok(exchange(credentials('pencil'), credentials('pencil')) instanceof ScramState);
  assert.ok(exchange(credentials(utf8('\u2168')), credentials('IX')) instanceof ScramState);
  assert.ok(exchange(credentials('\xff'), credentials('\xff')) instanceof ScramState);
  assert.equal(exchange(credentials('pen'), credentials(PENCIL)), 'proof');
  assert.equal(exchange(credentials('pen'), credentials('pencil')), 'proof');
  assert.equal(exchange(credentials('x'), credentials(`md5${'0'.repeat(32)}`)), server.SCRAM_MD5_SECRET);
});

test('SCRAM keys of a login replace the password in the next login', () => {
  const user = credentials(PENCIL);
  const state = exchange(credentials('pencil'), user);
  assert.ok(state instanceof ScramState);
  assert.match(client.checkScramLogin(user) ?? '', /did not provide SCRAM keys$/);
  server.saveScramKeys(state, user);
  assert.equal(client.checkScramLogin(user), null);
  assert.ok(exchange(user, credentials(PENCIL)) instanceof ScramState);

  const changed = { ...credentials(PENCIL), passwd: 'changed' };
  server.saveScramKeys(state, changed);
  assert.equal(changed.scramPassthroughValid, false, 'the secret has changed during the exchange');

  const plain = credentials('pencil');
  const adhoc = exchange(credentials('pencil'), plain);
  assert.ok(adhoc instanceof ScramState && adhoc.adhoc);
  server.saveScramKeys(adhoc, plain);
  assert.equal(plain.scramPassthroughValid, false, 'made-up keys are no good to a server');
  assert.equal(client.checkScramLogin(plain), null);
  assert.match(client.checkScramLogin(credentials(`md5${'0'.repeat(32)}`)) ?? '', /wrong password type$/);
});

test('the SCRAM secret of a plain password is kept until the password changes', () => {
  const user = credentials('pencil');
  exchange(credentials('pencil'), user);
  const kept = user.scramVerifier;
  assert.equal(passwordType(kept as string), PasswordType.SCRAM_SHA_256);
  exchange(credentials('pencil'), user);
  assert.equal(user.scramVerifier, kept);
  user.passwd = 'other';
  assert.ok(exchange(credentials('other'), user) instanceof ScramState);
  assert.notEqual(user.scramVerifier, kept);
  const dynamic = { ...credentials('pencil'), dynamicPasswd: true };
  exchange(credentials('pencil'), dynamic);
  assert.equal(dynamic.scramVerifier, null);
});

test('an unknown user gets a constant SCRAM salt and cannot log in', () => {
  const nobody = { ...credentials('', 'nobody'), mockAuth: true };
  const saltFor = (user: ScramCredentials): string => {
    const s = new ScramState();
    server.readClientFirstMessage(s, 'n,,n=,r=abc');
    return (server.buildServerFirstMessage(s, user, 1234) as string).replace(/^r=[^,]*/, '');
  };
  assert.equal(saltFor(nobody), saltFor(nobody));
  assert.match(saltFor(nobody), /^,s=[A-Za-z0-9+/]{22}==,i=1234$/);
  assert.notEqual(saltFor(nobody), saltFor({ ...nobody, name: 'noone' }));
  assert.equal(exchange(credentials('x'), nobody), 'proof');
});

test('broken SCRAM client-first-messages are refused', () => {
  for (const [message, error] of [
    ['p=tls-server-end-point,,n=,r=x', 'client requires SCRAM channel binding, but it is not supported'],
    ['x,,n=,r=x', `malformed SCRAM message (unexpected channel-binding flag "'x'")`],
    ['', 'malformed SCRAM message (unexpected channel-binding flag "0x00")'],
    ['n', 'malformed SCRAM message (comma expected, but found character "0x00")'],
    ['n;', `malformed SCRAM message (comma expected, but found character "';'")`],
    ['n,a=root,n=,r=x', 'client uses authorization identity, but it is not supported'],
    ['n,n=,r=x', `malformed SCRAM message (unexpected attribute "'n'" in client-first-message)`],
    ['n,,m=x,n=,r=x', 'client requires an unsupported SCRAM extension'],
    ['n,,r=x', 'malformed SCRAM message (attribute "n" expected)'],
    ['n,,n,r=x', 'malformed SCRAM message (expected "=" after attribute "n")'],
    ['n,,n=,x=y', 'malformed SCRAM message (attribute "r" expected)'],
    ['n,,n=', 'malformed SCRAM message (attribute "r" expected)'],
    ['n,,n=,r=a b', 'non-printable characters in SCRAM nonce'],
    ['n,,n=,r=\xe4', 'non-printable characters in SCRAM nonce'],
    ['n,,n=,r=x,1=y', `malformed SCRAM message (attribute expected, but found invalid character "'1'")`],
    ['n,,n=,r=x,a', 'malformed SCRAM message (expected character "=" after attribute "a")'],
  ] as const) {
    const s = new ScramState();
    assert.equal(server.readClientFirstMessage(s, message), error, message);
    assert.equal(s.clientNonce, null);
  }
  const s = new ScramState();
  assert.equal(server.readClientFirstMessage(s, 'y,,n=joe,r=x,e=y\0junk'), null);
  assert.equal(s.clientFirstMessageBare, 'n=joe,r=x,e=y');
});

test('broken SCRAM client-final-messages are refused', () => {
  const proof = Buffer.alloc(32).toString('base64');
  for (const [message, error] of [
    ['', 'malformed SCRAM message (attribute "c" expected)'],
    [`c=eSws,r=x,p=${proof}`, 'unexpected SCRAM channel-binding attribute in client-final-message'],
    [`c=biws,p=${proof}`, 'malformed SCRAM message (attribute "r" expected)'],
    ['c=biws,r=x', 'malformed SCRAM message (attribute expected, but found invalid character "0x00")'],
    ['c=biws,r=x,p=AAAA', 'malformed SCRAM message (malformed proof in client-final-message)'],
    ['c=biws,r=x,p=', 'malformed SCRAM message (malformed proof in client-final-message)'],
    [`c=biws,r=x,p=${proof},x=y`, 'malformed SCRAM message (garbage at the end of client-final-message)'],
  ] as const) {
    const s = new ScramState();
    server.readClientFirstMessage(s, 'n,,n=,r=x');
    assert.equal(server.readClientFinalMessage(s, message), error, message);
    assert.equal(server.verifyFinalNonce(s), false);
    assert.equal(server.verifyClientProof(s), false);
  }
  const s = new ScramState();
  server.readClientFirstMessage(s, 'y,,n=,r=x');
  server.buildServerFirstMessage(s, credentials(PENCIL), 4096);
  assert.equal(server.readClientFinalMessage(s, `c=eSws,r=x,z=ext,p=${proof}`), null);
  assert.equal(s.clientFinalMessageWithoutProof, 'c=eSws,r=x,z=ext');
  assert.equal(server.verifyFinalNonce(s), false, 'our part of the nonce is missing');
});

test('broken SCRAM messages of a server are refused', () => {
  for (const [message, error] of [
    ['', 'malformed SCRAM message (attribute "r" expected)'],
    ['r=other,s=AAAA,i=1', 'invalid SCRAM response (nonce mismatch)'],
    ['r=NONCEx,s=A,i=1', 'malformed SCRAM message (invalid salt)'],
    ['r=NONCEx,s=AAAA,i=0', 'malformed SCRAM message (invalid iteration count)'],
    ['r=NONCEx,s=AAAA,i=9x', 'malformed SCRAM message (invalid iteration count)'],
    ['r=NONCEx,s=AAAA,i=1000001', 'malformed SCRAM message (invalid iteration count)'],
    ['r=NONCEx,s=AAAA', 'malformed SCRAM message (attribute "i" expected)'],
    ['r=NONCEx,s=AAAA,i=1,x', 'malformed SCRAM message (garbage at end of server-first-message)'],
  ] as const) {
    const c = new ScramState();
    client.buildClientFirstMessage(c);
    assert.equal(client.readServerFirstMessage(c, message.replace('NONCE', c.clientNonce as string)), error, message);
    assert.equal(c.serverNonce, null);
  }
  const c = new ScramState();
  assert.equal(
    client.readServerFinalMessage(c, 'e=invalid-proof'),
    'error received from server in SCRAM exchange: invalid-proof',
  );
  assert.equal(client.readServerFinalMessage(c, 'v=AAAA'), 'malformed SCRAM message (malformed server signature)');
  assert.equal(
    client.readServerFinalMessage(c, `v=${Buffer.alloc(32).toString('base64')},x`),
    'malformed SCRAM message (garbage at end of server-final-message)',
  );
  assert.equal(client.verifyServerSignature(c), false);
});
