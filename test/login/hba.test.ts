/* HBA and ident files: what a line means, which rule a client falls under, and hostile files. */

import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type HbaClient, hbaEval } from '../../src/core/auth/hba-eval';
import { formatInet, parseInet, parseInet4, parseInet6 } from '../../src/core/base/inet';
import { logState } from '../../src/core/base/log';
import { AuthType } from '../../src/core/config/choices';
import { type HbaRule, HbaType, loadHba, parseHba } from '../../src/core/config/hba';
import { loadIdent, parseIdent } from '../../src/core/config/ident';
import { type LdapParse, LdapScope, parseLdapOptions } from '../../src/core/config/ldap-options';
import { Random } from '../harness/hostile/random';
import { after, test } from '../harness/limits';

logState.quiet = true;

const dir = mkdtempSync(join(tmpdir(), 'tsb-hba-'));
after(() => rmSync(dir, { recursive: true, force: true }));

/** The log lines that `act` writes. */
function logged(act: () => void): string[] {
  const lines: string[] = [];
  logState.sink = (_level, message) => lines.push(message);
  try {
    act();
  } finally {
    logState.sink = null;
  }
  return lines;
}

function rulesOf(...lines: string[]): HbaRule[] {
  let rules: HbaRule[] = [];
  logged(() => {
    rules = parseHba(lines, parseIdent(['map1 sys pg']), join(dir, 'hba.conf'));
  });
  return rules;
}

const complaints = (...lines: string[]): string[] => logged(() => parseHba(lines, null, join(dir, 'hba.conf')));

function client(facts: Partial<HbaClient> = {}): HbaClient {
  const usual = { isUnix: false, host: '10.0.0.1', isTls: false, physicalReplication: false };
  return { ...usual, database: 'db', user: 'joe', ...facts };
}

/** Line number of the rule that the client falls under; 0 = none. */
const lineFor = (rules: HbaRule[], facts: Partial<HbaClient> = {}): number => hbaEval(rules, client(facts))?.line ?? 0;

test('HBA addresses are accepted exactly as by inet_pton', () => {
  assert.deepEqual([...(parseInet4('1.2.3.255') ?? [])], [1, 2, 3, 255]);
  for (const bad of [
    '',
    '1.2.3',
    '1.2.3.4.5',
    '1.2.3.256',
    '01.2.3.4',
    '1.2.3.4 ',
    '1..3.4',
    '0x1.2.3.4',
    '1.2.3.-4',
  ]) {
    assert.equal(parseInet4(bad), null, bad);
  }
  for (const [text, usual] of [
    ['::', '::'],
    ['::1', '::1'],
    ['1::', '1::'],
    ['FF11:0:0:0:0:0:0:1', 'ff11::1'],
    ['1:0:0:2:0:0:0:3', '1:0:0:2::3'],
    ['1:2:3:4:5:6:7:8', '1:2:3:4:5:6:7:8'],
    ['1:2:3:4:5:6:1.2.3.4', '1:2:3:4:5:6:102:304'],
    ['::ffff:1.2.3.4', '::ffff:102:304'],
    ['1:2:3:4:5:6:7::', '1:2:3:4:5:6:7:0'],
  ] as const) {
    const bytes = parseInet6(text);
    assert.ok(bytes !== null, text);
    assert.equal(formatInet(bytes), usual);
  }
  for (const bad of [
    ':',
    ':::',
    '1::2::3',
    '1:2:3:4:5:6:7',
    '1:2:3:4:5:6:7:8:9',
    '12345::',
    'g::',
    '1.2.3.4::',
    '::1%lo',
    '1:2:3:4:5:6:7:8::',
  ]) {
    assert.equal(parseInet6(bad), null, bad);
  }
});

test('printed HBA addresses are parsed to the same address', () => {
  const random = new Random(7);
  for (let i = 0; i < 2000; i++) {
    const bytes = Uint8Array.from({ length: i % 2 === 0 ? 4 : 16 }, () =>
      random.below(3) === 0 ? random.below(256) : 0,
    );
    assert.deepEqual(parseInet(formatInet(bytes)), bytes);
  }
});

test('HBA record types match the way a client is connected', () => {
  const rules = rulesOf(
    'local all all peer',
    'hostssl all all 10.0.0.0/8 cert',
    'hostnossl all all 10.0.0.0/8 md5',
    'host all all all password',
  );
  assert.deepEqual(
    rules.map((rule) => [rule.type, rule.method]),
    [
      [HbaType.LOCAL, AuthType.PEER],
      [HbaType.HOSTSSL, AuthType.CERT],
      [HbaType.HOSTNOSSL, AuthType.MD5],
      [HbaType.HOST, AuthType.PLAIN],
    ],
  );
  assert.equal(lineFor(rules, { isUnix: true, host: 'unix' }), 1);
  assert.equal(lineFor(rules, { isTls: true }), 2);
  assert.equal(lineFor(rules), 3);
  assert.equal(lineFor(rules, { host: '11.0.0.1' }), 4);
  assert.equal(lineFor(rules, { host: 'fe80::1%eth0' }), 4);
  const withoutSsl = rulesOf('hostnossl all all all trust', 'host all all all md5');
  assert.deepEqual([lineFor(withoutSsl, { isTls: true }), lineFor(withoutSsl, { isTls: false })], [2, 1]);
});

test('the first matching HBA rule decides, even if it is a reject', () => {
  const rules = rulesOf('host all joe all reject', 'host all all all trust');
  assert.equal(hbaEval(rules, client())?.method, AuthType.REJECT);
  assert.equal(hbaEval(rules, client({ user: 'ann' }))?.method, AuthType.TRUST);
  assert.equal(lineFor([], {}), 0);
  assert.equal(hbaEval(null, client()), null);
});

test('HBA rules match lists of databases and users', () => {
  const rules = rulesOf(
    'host db1,db2 , db3 joe,ann all md5',
    'host "all","a ""b"" , c","" joe all md5',
    'host sameuser all all trust',
    'host all ann all md5 # and so on',
  );
  for (const database of ['db1', 'db2', 'db3']) assert.equal(lineFor(rules, { database }), 1);
  assert.equal(lineFor(rules, { database: 'db4' }), 0);
  assert.equal(lineFor(rules, { database: 'all' }), 2, 'a quoted word is a name');
  assert.equal(lineFor(rules, { database: 'a "b" , c' }), 2);
  assert.equal(lineFor(rules, { database: '' }), 2);
  assert.equal(lineFor(rules, { database: 'joe' }), 3);
  assert.equal(lineFor(rules, { database: 'DB1', user: 'ann' }), 4, 'case matters');
});

test('HBA lists in files may name further files but not themselves', () => {
  mkdirSync(join(dir, 'sub'), { recursive: true });
  writeFileSync(join(dir, 'names'), 'ann,bob\n"c d"\n@sub/more');
  writeFileSync(join(dir, 'sub', 'more'), 'eve\n@deepest\n');
  writeFileSync(join(dir, 'sub', 'deepest'), 'zoe\n');
  writeFileSync(join(dir, 'loop'), 'ann\n@loop\n');
  const rules = rulesOf('host all @names all md5', `host all @${join(dir, 'sub', 'more')} all trust`);
  for (const user of ['ann', 'bob', 'c d', 'eve', 'zoe']) assert.equal(lineFor(rules, { user }), 1, user);
  assert.equal(lineFor(rules, { user: 'names' }), 0);
  assert.deepEqual([...(rules[1]?.users.names ?? [])], ['eve', 'zoe'], 'relative to the file that names it');
  assert.deepEqual(rulesOf('host all @loop all trust', 'host all @missing all trust'), []);
  assert.match(complaints('host all @loop all trust').join('\n'), /too deep.*\ncould not parse hba config line 1/);
});

test('a file of names may have several in a line, empty lines and comments, as in PostgreSQL', () => {
  writeFileSync(join(dir, 'banned'), '# left the company\n\nann bob,carl\tdora ,\r\n  \n, eve # and so on\n"f g"h\n');
  const rules = rulesOf('host all @banned all reject', 'host all all all trust');
  for (const user of ['ann', 'bob', 'carl', 'dora', 'eve', 'f g', 'h']) assert.equal(lineFor(rules, { user }), 1, user);
  for (const user of ['left', '#', 'and', '']) assert.equal(lineFor(rules, { user }), 2, user);
  for (const bad of ['ann +group\n', 'ann "bob\n', 'ann samerole\n']) {
    writeFileSync(join(dir, 'bad'), bad);
    assert.deepEqual(rulesOf('host all @bad all trust'), [], bad);
  }
});

test('a user may be called replication, in a rule and in a file of names', () => {
  writeFileSync(join(dir, 'standbys'), 'replication\n');
  for (const users of ['replication', 'joe,replication', '"replication"', '@standbys']) {
    const rules = rulesOf(`host replication ${users} all trust`);
    assert.equal(lineFor(rules, { physicalReplication: true, user: 'replication' }), 1, users);
    assert.equal(lineFor(rules, { physicalReplication: true, user: 'ann' }), 0, users);
  }
  assert.equal(lineFor(rulesOf('host @standbys all all trust'), { physicalReplication: true }), 1);
});

test('physical replication needs an HBA rule for replication; logical replication matches its database', () => {
  const rules = rulesOf('host all all all md5', 'host replication joe all trust', 'host db,replication ann all trust');
  assert.equal(lineFor(rules, { physicalReplication: true }), 2);
  assert.equal(lineFor(rules, { physicalReplication: true, user: 'ann' }), 3);
  assert.equal(lineFor(rules, { physicalReplication: true, user: 'bob' }), 0);
  assert.equal(lineFor(rulesOf('host replication all all trust'), { database: 'replication' }), 0);
  assert.equal(lineFor(rulesOf('host "replication" all all trust'), { database: 'replication' }), 1);
});

test('an HBA network contains exactly the addresses with its leading bits', () => {
  const random = new Random(11);
  for (let i = 0; i < 3000; i++) {
    const length = random.below(2) === 0 ? 4 : 16;
    const bits = random.below(8 * length + 1);
    const bytes = () => Uint8Array.from({ length }, () => random.below(256));
    const net = bytes();
    const host = bytes();
    // half of them differ in one bit only, near the edge
    if (random.below(2) === 0) {
      host.set(net);
      const at = random.below(8 * length);
      host[at >> 3] = (host[at >> 3] as number) ^ (0x80 >> (at & 7));
    }
    const bitOf = (from: Uint8Array, at: number) => ((from[at >> 3] as number) >> (7 - (at & 7))) & 1;
    const mask = Uint8Array.from({ length }, (_, at) =>
      Math.max(0, 255 & (255 << (8 - Math.min(8, Math.max(0, bits - 8 * at))))),
    );
    for (let at = 0; at < length; at++) net[at] = (net[at] as number) & (mask[at] as number);
    let inside = 1;
    for (let at = 0; at < bits; at++) if (bitOf(net, at) !== bitOf(host, at)) inside = 0;
    const short = rulesOf(`host all all ${formatInet(net)}/${bits} trust`);
    const long = rulesOf(`host all all ${formatInet(net)} ${formatInet(mask)} trust`);
    assert.equal(
      lineFor(short, { host: formatInet(host) }),
      inside,
      `${formatInet(host)} in ${formatInet(net)}/${bits}`,
    );
    assert.equal(lineFor(long, { host: formatInet(host) }), inside);
  }
});

test('an HBA network with address bits outside its mask matches no client and is reported', () => {
  const line = 'host all all 192.168.1.1/16 trust';
  assert.deepEqual(complaints(line), [
    `address does not match mask in ${join(dir, 'hba.conf')} line #1: 192.168.1.1 / 255.255.0.0`,
  ]);
  assert.equal(lineFor(rulesOf(line), { host: '192.168.1.1' }), 0);
});

test('an IPv4 HBA rule matches IPv4 clients only, also on a socket for both families', () => {
  const rules = rulesOf('host all all 1.2.3.0/24 reject', 'host all all ::/0 md5');
  assert.equal(lineFor(rules, { host: '1.2.3.4' }), 1);
  assert.equal(lineFor(rules, { host: '::ffff:1.2.3.4' }), 1);
  assert.equal(lineFor(rules, { host: '::ffff:1.2.4.4' }), 2);
  assert.equal(lineFor(rules, { host: '1.2.4.4' }), 0);
  for (const host of ['::1.2.3.4', '::fffe:1.2.3.4', '1::ffff:1.2.3.4']) assert.equal(lineFor(rules, { host }), 2);
  assert.equal(lineFor(rulesOf('host all all ::ffff:1.2.3.0/120 md5'), { host: '::ffff:1.2.3.4' }), 1);
  assert.equal(lineFor(rules, { host: 'nonsense' }), 0);
});

test('bad HBA lines are reported with the texts of PgBouncer and do not affect other lines', () => {
  const cases: [string, string | null][] = [
    ['foo all all trust', 'hba line 2: unknown type'],
    ['host all all samenet trust', 'hba line 2: failed to parse address - samenet'],
    ['host all all 1.2.3.4/33 trust', 'hba line 2: invalid mask'],
    ['host all all 1.2.3.4/x trust', 'hba line 2: invalid mask'],
    ['host all all 1.2.3.4/ trust', 'hba line 2: invalid mask'],
    ['host all all ::1/129 trust', 'hba line 2: invalid mask'],
    ['host all all 1.2.3.4 trust', 'hba line 2: failed to parse mask: trust'],
    ['host all all 1.2.3.4 ::1 trust', 'hba line 2: failed to parse mask: ::1'],
    ['host all all 1.2.3.4 "255.0.0.0" trust', 'hba line 2: did not find mask'],
    ['host all all "1.2.3.4/8" trust', "hba line 2: did not find address - 0 - '1.2.3.4/8'"],
    ['host all all', "hba line 2: did not find address - 4 - 'all'"],
    ['local all all pam', 'hba line 2: unsupported method: buf=pam'],
    ['local all all', 'hba line 2: unsupported method: buf=all'],
    ['local all all trust map=nosuch', 'hba line 2: Ident map nosuch is not found in ident config file'],
    ['local all all trust foo', 'hba line 2: Ident map foo is malformed. It is not in map=value format.'],
    ['local all all trust "foo"', 'hba line 2: unsupported parameters'],
    ['local samerole all trust', 'samerole is not supported'],
    ['local samegroup all trust', 'samegroup is not supported'],
    ['local all +group trust', null],
    ['local all "open trust', null],
    ['local all, trust', null],
    ['local', null],
  ];
  for (const [line, complaint] of cases) {
    const lines = ['local all all reject', line, 'host all all all md5'];
    const expected = [complaint, 'could not parse hba config line 2'].filter((text) => text !== null);
    // two lines take the method for a name and fail later
    const got = complaints(...lines);
    if (complaint === null) assert.equal(got.at(-1), expected[0], line);
    else assert.deepEqual(got, expected, line);
    assert.deepEqual(
      rulesOf(...lines).map((rule) => rule.line),
      [1, 3],
      line,
    );
  }
});

test('HBA files may contain blank lines, comments, odd spaces and any line ends', () => {
  const rules = rulesOf(
    '',
    ' \t\v\f\r',
    '# nothing',
    '\t local\tall \t all\ttrust\r',
    'local all all trust#x',
    'local all all md5\0 junk',
  );
  assert.deepEqual(
    rules.map((rule) => rule.line),
    [4, 5, 6],
  );
});

test('the HBA method ldap takes the rest of its line as options', () => {
  const [rule] = rulesOf('host all all all ldap ldapserver=a ldapprefix="uid=" # no comment');
  assert.equal(rule?.method, AuthType.LDAP);
  assert.equal(rule?.options, ' ldapserver=a ldapprefix="uid=" # no comment');
});

test('ident maps translate system users to database users', () => {
  const maps = parseIdent(['# map', 'a sys pg', 'a "s y s" "all"', 'a other all', 'b sys "p""g"', '']);
  assert.deepEqual(maps.get('a')?.mappings, [
    { systemUser: 'sys', postgresUser: 'pg' },
    { systemUser: 's y s', postgresUser: 'all' },
    { systemUser: 'other', postgresUser: null },
  ]);
  assert.equal(maps.get('b')?.mappings[0]?.postgresUser, 'p"g');
  for (const bad of ['a', 'a sys', '"a" sys pg', 'a , pg', 'a sys pg more', 'a sys "pg']) {
    assert.equal(logged(() => parseIdent([bad])).at(-1), 'could not parse ident config line 1', bad);
  }
  const [rule] = rulesOf('local all all peer map=map1');
  assert.equal(rule?.identMap?.name, 'map1');
});

test('missing HBA and ident files are reported', () => {
  const lines = logged(() => {
    assert.equal(loadHba(join(dir, 'nosuch'), null), null);
    assert.equal(loadIdent(join(dir, 'nosuch')), null);
  });
  assert.deepEqual(lines, [
    `could not open hba config file ${join(dir, 'nosuch')}: No such file or directory`,
    `could not open ident config file ${join(dir, 'nosuch')}: No such file or directory`,
  ]);
});

test('an HBA file of any bytes is read to its end, and every rule comes from a line', () => {
  const random = new Random(23);
  const plain = 'local host hostssl all sameuser replication @ @names +x , " "" # / = trust md5 ldap map=map1 map=';
  const words = [...plain.split(' '), ...'10.0.0.0/8 ::/0 1.2.3.4 255.0.0.0 \0 \xff'.split(' '), ' ', '\t', '\r'];
  for (let i = 0; i < 5000; i++) {
    let line = random.below(2) === 0 ? 'host all ' : '';
    for (let n = random.below(12); n > 0; n--)
      line += `${words[random.below(words.length)]}${random.below(3) === 0 ? '' : ' '}`;
    const rules = rulesOf(line, 'local all all reject');
    assert.equal(rules.at(-1)?.line, 2, JSON.stringify(line));
    hbaEval(rules, client({ database: line, user: line, host: line }));
    logged(() => parseIdent([line]));
    parseLdapOptions(line);
  }
});

test('an HBA rule with all parts at once still refuses other clients', () => {
  const random = new Random(29);
  const names = () => Array.from({ length: 1 + random.below(4) }, () => `n${random.below(20)}`);
  for (let i = 0; i < 500; i++) {
    const databases = names();
    const users = names();
    const rules = rulesOf(`host ${databases.join(',')} ${users.map((name) => `"${name}"`).join(' , ')} all trust`);
    for (let n = 0; n < 20; n++) {
      const facts = { database: `n${random.below(20)}`, user: `n${random.below(20)}` };
      const expected = databases.includes(facts.database) && users.includes(facts.user) ? 1 : 0;
      assert.equal(lineFor(rules, facts), expected);
    }
  }
});

/* ---- options of ldap ---- */

const optionsOf = (text: string): NonNullable<LdapParse['options']> => {
  const { options, error } = parseLdapOptions(text);
  assert.ok(options !== null, `${text}: ${error}`);
  return options;
};

test('LDAP options accept keys, quotes and commas', () => {
  const options = optionsOf(
    ' ldapserver="a b", "ldapport"=1389 ,ldapprefix="uid=" ldapsuffix=",dc=x ""y""" ldaptls=1 \n',
  );
  assert.equal(options.server, 'a b');
  assert.equal(options.port, 1389);
  assert.equal(options.prefix, 'uid=');
  assert.equal(options.suffix, ',dc=x "y"');
  assert.equal(options.tls, true);
  assert.equal(options.scheme, 'ldap');
  assert.equal(optionsOf('ldapserver=a ldapscheme=ldaps ldapbasedn=dc=x').port, 636);
  assert.equal(optionsOf('ldapserver=a ldapbasedn=dc=x').scope, LdapScope.SUB);
  assert.equal(parseLdapOptions('ldapserver=a ldapbasedn=dc=x ldaptls= 1').rest, 'ldaptls= 1');
});

test('LDAP options accept URLs', () => {
  const options = optionsOf('ldapurl="ldaps://h:1/dc=x??sub?(|(uid=$username)(mail=%24username))"');
  assert.deepEqual(
    [
      options.scheme,
      options.server,
      options.port,
      options.baseDn,
      options.searchAttribute,
      options.scope,
      options.searchFilter,
    ],
    ['ldaps', 'h', 1, 'dc=x', null, LdapScope.SUB, '(|(uid=$username)(mail=$username))'],
  );
  assert.equal(optionsOf('ldapurl=ldap://h/dc=x?cn?one').searchAttribute, 'cn');
  assert.equal(optionsOf('ldapurl=ldap://h/dc=x').scope, LdapScope.BASE);
  assert.equal(optionsOf('ldapurl=ldap://[::1]:77/dc=a%20b').baseDn, 'dc=a b');
  assert.equal(optionsOf('ldapurl=ldap://[::1]:77/dc=a').server, '[::1]');
  assert.equal(optionsOf('ldapurl=ldap://h').baseDn, '');
});

test('LDAP options with errors are refused', () => {
  const errors: [string, RegExp][] = [
    ['', /^authentication method "ldap" requires argument "ldapbasedn", "ldapprefix", or "ldapsuffix" to be set$/],
    ['ldapserver=a ldapprefix=x ldapbasedn=y', /^cannot mix options for simple bind and search\+bind modes$/],
    ['ldapbasedn=y ldapsearchattribute=a ldapsearchfilter=b', /^cannot use ldapsearchattribute together with/],
    ['ldapprefix=x', /^LDAP server not specified, and no ldapbasedn$/],
    ['ldapport=zero', /^invalid LDAP port number: "zero"$/],
    ['ldapport=99999', /^invalid LDAP port number/],
    // five digits of it would be a port
    ['ldapport=636000', /^invalid LDAP port number: "636000"$/],
    ['ldapscheme=http', /^invalid ldapscheme value: "http"$/],
    ['nonsense=1', /^invalid LDAP option: "nonsense"$/],
    ['ldapurl=http://h/', /^unsupported LDAP URL scheme: http$/],
    ['ldapurl=ldap:/h/', /^could not parse LDAP URL "ldap:\/h\/"/],
    ['ldapurl=ldap://h/dc=x??wide', /^could not parse LDAP URL/],
    ['ldapurl=ldap://h/dc=x????!e', /^could not parse LDAP URL/],
    [`ldapbasedn=${'x'.repeat(1024)}`, /^The LDAP options are longer than MAX_LDAP_CONFIG: 1024$/],
  ];
  for (const [text, error] of errors) assert.match(parseLdapOptions(text).error, error, text);
});
