/*
 * Fuzz targets of authentication: HBA rules compared with Node's address lists, SCRAM in both directions with the
 * test's own implementation, md5 and stored secrets with plain hashing, and properties of SASLprep.
 */

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { BlockList, isIP } from 'node:net';
import { join } from 'node:path';
import { hbaEval } from '../../src/core/auth/hba-eval';
import { md5Answer, pgMd5Encrypt } from '../../src/core/auth/md5';
import { checkMd5Password, checkPlainPassword } from '../../src/core/auth/passwd';
import { saslprep } from '../../src/core/auth/saslprep';
import { type ScramCredentials, ScramState } from '../../src/core/auth/scram';
import {
  buildClientFinalMessage,
  buildClientFirstMessage,
  readServerFinalMessage,
  readServerFirstMessage,
  verifyServerSignature,
} from '../../src/core/auth/scram-client';
import {
  buildAdhocSecret,
  buildServerFinalMessage,
  buildServerFirstMessage,
  readClientFinalMessage,
  readClientFirstMessage,
  verifyClientProof,
  verifyFinalNonce,
} from '../../src/core/auth/scram-server';
import { base64Decode, formatScramSecret, parseScramSecret, passwordType } from '../../src/core/auth/secret';
import { formatInet, parseInet } from '../../src/core/base/inet';
import { type HbaNames, type HbaRule, HbaType, parseHba } from '../../src/core/config/hba';
import { parseIdent } from '../../src/core/config/ident';
import type { Random } from '../harness/hostile/random';
import { tempDir } from '../harness/machine';
import { ScramClient, md5Answer as testMd5Answer } from '../harness/scram';
import type { Target } from './engine';

/* ---- HBA ---- */

const dir = tempDir('fuzzhba');
const hbaPath = join(dir, 'hba.conf');
writeFileSync(join(dir, 'names'), 'ann, bob\n"all"\n# nobody\n+group\n');
writeFileSync(join(dir, 'more'), 'carl\n@names\n');
writeFileSync(join(dir, 'itself'), 'dora, @itself\n');
const identMaps = parseIdent(['map ann all', 'map "b b" "c c"']);

const TYPES = ['local', 'host', 'hostssl', 'hostnossl'];
const METHODS = new Map([
  [parseHba(['local all all trust'], null, '')[0]?.method, 'trust'],
  [parseHba(['local all all md5'], null, '')[0]?.method, 'md5'],
]);

function printNames(names: HbaNames): string {
  const words = [...names.names].map((name) => `"${name.replaceAll('"', '""')}"`);
  if (names.all) words.push('all');
  if (names.sameuser) words.push('sameuser');
  if (names.replication) words.push('replication');
  return words.join(',');
}

/** Number of leading ones of a contiguous mask; -1 for other masks. */
function prefixOf(mask: Uint8Array): number {
  const bits = [...mask].map((byte) => byte.toString(2).padStart(8, '0')).join('');
  const match = /^(1*)0*$/.exec(bits);
  return match === null ? -1 : (match[1] as string).length;
}

function nearby(address: Uint8Array, random: Random): string {
  const bytes = Uint8Array.from(address);
  for (let left = random.below(3); left > 0; left--) {
    const at = random.below(bytes.length);
    bytes[at] = (bytes[at] as number) ^ (1 << random.below(8));
  }
  return formatInet(bytes);
}

const address = (random: Random): Buffer => random.bytes(random.one(2) ? 4 : 16);

function checkRule(rule: HbaRule, random: Random): void {
  // every word of a rule can be quoted, except addresses
  const where =
    rule.type === HbaType.LOCAL ? '' : rule.anyAddress ? 'all' : `${formatInet(rule.address)} ${formatInet(rule.mask)}`;
  const printed = `${TYPES[rule.type]} ${printNames(rule.databases)} ${printNames(rule.users)} ${where} md5`;
  const empty = (names: HbaNames) => !names.all && !names.sameuser && !names.replication && names.names.size === 0;
  if (!empty(rule.databases) && !empty(rule.users)) {
    const again = parseHba([printed], null, hbaPath)[0];
    const { method, identMap, options, line, ...said } = rule;
    const { method: _1, identMap: _2, options: _3, line: _4, ...saidAgain } = again ?? rule;
    assert.ok(again !== undefined, printed);
    assert.deepEqual(saidAgain, said, printed);
    assert.ok(METHODS.size === 2 && line >= 1 && typeof options === 'string' && identMap !== undefined && method >= 0);
  }
  if (rule.type === HbaType.LOCAL) return;
  const anybody = { ...rule, type: HbaType.HOST, databases: { ...rule.databases, all: true } };
  anybody.users = { ...rule.users, all: true };
  const host = rule.anyAddress || random.one(4) ? formatInet(address(random)) : nearby(rule.address, random);
  const client = { isUnix: false, host, isTls: false, physicalReplication: false, database: 'd', user: 'u' };
  const matches = hbaEval([anybody], client) !== null;
  assert.equal(matches, expectMatch(rule, host), `${printed} and ${host}`);
}

/** Node's result, where Node supports the case. */
function expectMatch(rule: HbaRule, host: string): boolean {
  if (rule.anyAddress) return true;
  const bits = prefixOf(rule.mask);
  const family = rule.address.length === 4 ? 'ipv4' : 'ipv6';
  if (isIP(host) !== (family === 'ipv4' ? 4 : 6)) return false;
  const fits = rule.address.every((byte, at) => (byte & ~(rule.mask[at] as number)) === 0);
  if (!fits) return false;
  if (bits < 0) {
    const bytes = parseInet(host) as Uint8Array;
    return bytes.every((byte, at) => (byte & (rule.mask[at] as number)) === rule.address[at]);
  }
  // Node treats IPv4-mapped addresses as IPv4, and has no subnets with a prefix of 0
  if (bits === 0) return true;
  const list = new BlockList();
  list.addSubnet(formatInet(rule.address), bits, family);
  return list.check(host, family);
}

function someAddress(random: Random): string {
  const bytes = address(random);
  const bits = random.below(bytes.length * 8 + 2);
  for (let at = 0; at < bytes.length; at++) {
    const here = Math.min(8, Math.max(0, bits - 8 * at));
    if (!random.one(6)) bytes[at] = (bytes[at] as number) & (0xff << (8 - here));
  }
  return `${formatInet(bytes)}/${bits}`;
}

const hba: Target = {
  name: 'hba',
  cases: 8000,
  words: [
    ...['local', 'host', 'hostssl', 'hostnossl', 'all', 'sameuser', 'replication', 'samerole', '+', '@names', '@more'],
    ...['@itself', '@none', ',', '"', '""', '#', '/', '/0', '/32', '/128', '127.0.0.1', '::1', '::ffff:1.2.3.4', '%lo'],
    ...['trust', 'md5', 'reject', 'ldap', 'map=', 'map=map', 'scram-sha-256', ' ', '\t', '\n', '\0', '255.255.0.0'],
  ],
  make(random) {
    const names = () => random.pick(['all', 'ann', 'ann,bob', 'sameuser', 'replication', '@names', '@more', '"x y"']);
    const where = random.pick(['all', someAddress(random), someAddress(random), '10.0.0.0 255.0.255.0']);
    return Buffer.from(`${random.pick(['host', 'hostssl', 'hostnossl'])} ${names()} ${names()} ${where} md5`);
  },
  run(input, random) {
    const text = input.toString('latin1');
    if (/@["']*[./]/.test(text)) return;
    const rules = parseHba(text.split('\n'), identMaps, hbaPath);
    for (const rule of rules) {
      checkRule(rule, random);
      const line = text.split('\n')[rule.line - 1] as string;
      const bits = /^host[a-z]* [^ ]+ [^ ]+ [0-9a-f.:]+\/([0-9]+) /.exec(line)?.[1];
      if (bits !== undefined && !line.includes('"')) assert.equal(prefixOf(rule.mask), Number(bits), line);
    }
    const host = formatInet(address(random));
    const client = { isUnix: random.one(2), host, isTls: random.one(2), physicalReplication: random.one(3) };
    const found = hbaEval(rules, { ...client, database: 'ann', user: 'bob' });
    assert.ok(found === null || rules.includes(found));
  },
};

/* ---- SCRAM ---- */

const PASSWORD = 'correct horse';
const secret = buildAdhocSecret(PASSWORD, 1);
const credentials = (): ScramCredentials => ({
  name: 'user',
  passwd: formatScramSecret(secret),
  mockAuth: false,
  dynamicPasswd: false,
  scramClientKey: null,
  scramServerKey: null,
  scramPassthroughValid: false,
  scramVerifier: null,
  scramVerifierFor: '',
});

const SCRAM_WORDS = [
  'n,,',
  'y,,',
  'p=',
  'n=',
  'r=',
  's=',
  'i=',
  'c=biws',
  'c=eSws',
  'v=',
  'e=',
  'm=',
  'a=',
  ',',
  '=',
  '\0',
];

/** In PgBouncer a NUL ends a text, a comma may be at the end, and the last base64 letter has unused bits. */
function meansSame(text: string, right: string): boolean {
  const proof = /^(.*[pv]=)([A-Za-z0-9+/]{43}=),?$/s;
  const [, front, key] = proof.exec(text.split('\0')[0] as string) ?? [];
  const [, rightFront, rightKey] = proof.exec(right) as RegExpExecArray;
  if (front === undefined || key === undefined || front !== rightFront) return false;
  return Buffer.from(key, 'base64').equals(Buffer.from(rightKey as string, 'base64'));
}

/** The input replaces or changes a message of a login: only the right message logs in. */
const scramServer: Target = {
  name: 'scram-server',
  cases: 5000,
  words: SCRAM_WORDS,
  run(input, random) {
    const text = input.toString('latin1');
    const state = new ScramState();
    const peer = new ScramClient(PASSWORD);
    const first = random.one(2) ? peer.first() : text;
    if (readClientFirstMessage(state, first) !== null) return;
    assert.match(state.clientNonce as string, /^[\x21-\x2b\x2d-\x7e]*$/);
    const answer = buildServerFirstMessage(state, credentials(), 4096) as string;
    assert.match(answer, /^r=[^,]*,s=[A-Za-z0-9+/=]*,i=1$/);
    if (first === text) return;

    const right = peer.final(answer);
    const at = random.below(right.length + 1);
    const final = random.pick([
      right,
      text,
      right.slice(0, at) + text + right.slice(at + random.below(9)),
      right + text,
    ]);
    const error = readClientFinalMessage(state, final);
    const isIn = error === null && verifyFinalNonce(state) && verifyClientProof(state);
    // in PgBouncer a NUL ends a text
    assert.equal(isIn, meansSame(final, right), final);
    if (isIn) peer.check(buildServerFinalMessage(state));
  },
};

/** The input is a server's message: only a server that knows the password is accepted. */
const scramClient: Target = {
  name: 'scram-client',
  cases: 4000,
  words: SCRAM_WORDS,
  run(input, random) {
    const text = input.toString('latin1');
    const login = { ...credentials(), passwd: PASSWORD };
    const mine = new ScramState();
    const theirs = new ScramState();
    const first = buildClientFirstMessage(mine);
    assert.equal(readClientFirstMessage(theirs, first), null);
    const answer = buildServerFirstMessage(theirs, credentials(), 1) as string;
    const at = random.below(answer.length + 1);
    let said = random.pick([answer, text, answer.slice(0, at) + text + answer.slice(at + random.below(9))]);
    // a server may choose a high iteration count, which takes long
    said = said.replace(/i=(\d{4,})/g, 'i=999');
    if (readServerFirstMessage(mine, said) !== null) {
      assert.notEqual(said, answer);
      return;
    }
    assert.ok(said.startsWith(`r=${mine.clientNonce}`) && mine.iterations >= 1);
    const final = buildClientFinalMessage(mine, login);
    assert.ok(final.startsWith(`c=biws,r=${mine.serverNonce},p=`));
    if (said !== answer) return;
    assert.equal(readClientFinalMessage(theirs, final), null);
    assert.ok(verifyFinalNonce(theirs) && verifyClientProof(theirs));
    const right = buildServerFinalMessage(theirs);
    const proof = random.one(2) ? right : random.pick([text, right.slice(0, random.below(right.length)) + text]);
    const believed = readServerFinalMessage(mine, proof) === null && verifyServerSignature(mine);
    assert.equal(believed, meansSame(proof, right), proof);
  },
};

/* ---- secrets ---- */

const secrets: Target = {
  name: 'secrets',
  cases: 8000,
  words: ['SCRAM-SHA-256$', '$', ':', 'md5', '=', '==', 'AAAA', '-1', '0x10', '4096', formatScramSecret(secret)],
  run(input, random) {
    const text = input.toString('latin1');
    const parsed = parseScramSecret(text);
    if (parsed !== null) {
      assert.deepEqual(parseScramSecret(formatScramSecret(parsed)), parsed);
      // the password of the secret is unknown
      if (parsed.iterations < 100) assert.equal(checkPlainPassword('user', text, 'guess'), false);
    }
    const decoded = base64Decode(text);
    if (decoded !== null) assert.equal(decoded.toString('base64').length, text.length);

    const user = text.slice(0, 20);
    const hex = createHash('md5').update(input).update(user, 'latin1').digest('hex');
    assert.equal(pgMd5Encrypt(text, user), `md5${hex}`);
    const salt = random.bytes(4);
    const right = testMd5Answer(user, text, salt);
    if (passwordType(text) !== 0 || text === '') return;
    assert.equal(md5Answer(null, text, user, salt), right);
    for (const stored of [text, `md5${hex}`]) {
      assert.equal(checkMd5Password(user, stored, salt, right), true);
      assert.equal(checkMd5Password(user, stored, random.bytes(4), right), false);
      assert.equal(checkPlainPassword(user, stored, text), true);
      assert.equal(checkPlainPassword(user, stored, `${text}x`), false);
    }
  },
};

/* ---- SASLprep ---- */

const utf8 = (text: string) => Buffer.from(text, 'utf8').toString('latin1');

const prep: Target = {
  name: 'saslprep',
  cases: 10_000,
  words: [
    '\xc2\xa0',
    '\xc2\xad',
    '\xe2\x80\x8b',
    '\xd7\x90',
    '\xef\xac\x81',
    '\xcc\x81',
    '\xe1\x9a\x80',
    'a',
    '\x7f',
    '\0',
  ].concat([utf8('Ⅸ'), utf8('ª'), utf8('ﷺ'), utf8('😀'), utf8('\ufeff'), utf8('１'), utf8('\u0627')]),
  make(random) {
    let text = '';
    for (let left = random.below(8); left > 0; left--) {
      const code = random.pick([
        random.below(0x80),
        random.below(0x800),
        random.below(0xd800),
        0xe000 + random.below(0x2000),
      ]);
      text += String.fromCodePoint(random.one(6) ? 0x1_0000 + random.below(0x10_0000) : code);
    }
    return Buffer.from(text, 'utf8');
  },
  run(input) {
    const text = input.toString('latin1');
    const prepared = saslprep(text);
    if (prepared === text) return;
    // changes only UTF-8, into UTF-8 in compatible, composed form
    const before = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(input);
    const after = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(Buffer.from(prepared, 'latin1'));
    assert.equal(after, after.normalize('NFKC'));
    const spaced = before.replace(/[\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000]/g, ' ');
    const mapped = spaced.replace(
      /\u00ad|\u034f|\u1806|[\u180b-\u180d]|\u200c|\u200d|\u2060|[\ufe00-\ufe0f]|\ufeff/g,
      '',
    );
    assert.equal(after, mapped.normalize('NFKC'));
  },
};

export const secretTargets: readonly Target[] = [hba, scramServer, scramClient, secrets, prep];
