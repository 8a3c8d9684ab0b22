/*
 * Logins decided by HBA rules and external authentication: HBA files with all record types, ident maps, certificates,
 * the system user at the other end of a Unix socket, PAM, LDAP.
 */

import { ADMIN_PASSWORD, ADMIN_USER } from '../../test/harness';
import type { Login } from '../../test/harness/raw-client';
import type { Scenario, Step } from '../side';
import { admin, appendIni, bye, loginUnix, query, rewriteFile, tryLogin } from '../steps';
import { ME } from '../test-bed';
import { loginTls, tryTls } from '../tls-steps';

const SCRAM_SECRET =
  'SCRAM-SHA-256$4096:MDEyMzQ1Njc4OWFiY2RlZg==$bpSY5Ze9NUH+I35LC3gVq+DpBfK46iXBxvhAKqVu9pE=:VpYlBuxyzeCI1KnctrefdljpB1mk3Gp7sBI/t11+NkQ=';
const USERLIST = { alice: 'secret', bob: 'secret', c_scram: SCRAM_SECRET, [ME]: '' };
const TLS = {
  client_tls_sslmode: 'allow',
  client_tls_key_file: '{certs}/site.key',
  client_tls_cert_file: '{certs}/site.crt',
  client_tls_ca_file: '{certs}/ca.crt',
};

/** For the console connection of the comparison itself, over the Unix socket. */
const CONSOLE_RULE = 'local pgbouncer all password';

/** A scenario with that HBA file, and that ident file if given. */
function rules(name: string, lines: string[], steps: Step[], more: Partial<Scenario> = {}, ident?: string[]): Scenario {
  const files = { hba: `${[...lines, CONSOLE_RULE].join('\n')}\n` };
  const settings = { ...TLS, auth_type: 'hba', auth_hba_file: '{dir}/hba', ...more.settings };
  return {
    name,
    userlist: USERLIST,
    steps,
    raceInLog: true,
    ...more,
    files: ident === undefined ? files : { ...files, ident: `${ident.join('\n')}\n` },
    settings: ident === undefined ? settings : { ...settings, auth_ident_file: '{dir}/ident' },
  };
}

const alice: Login = { user: 'alice', password: 'secret' };

function unixTry(login: Login): Step[] {
  return [loginUnix('u', login), bye('u')];
}

/** Steps that replace the rules. */
function newRules(...lines: string[]): Step[] {
  return [rewriteFile('hba', `${[...lines, CONSOLE_RULE].join('\n')}\n`, lines.join('; ')), admin('RELOAD')];
}

/** Logins over TCP, TLS and the Unix socket, with a right and a wrong password. */
const comers: Step[] = [
  tryLogin(alice),
  tryLogin({ ...alice, password: 'wrong' }),
  tryLogin({ ...alice, database: 'second' }),
  tryLogin({ user: 'bob', password: 'secret' }),
  tryLogin({ user: 'nobody', password: 'secret' }),
  tryTls({}, alice),
  ...unixTry(alice),
];

/** One scenario per rule: a record type or a field, and the logins that it matches. */
const oneRule: [string, ...string[]][] = [
  ['host all all 127.0.0.1/32 trust'],
  ['host all all 127.0.0.0/8 password'],
  ['host all all 127.0.0.1 255.255.255.255 md5'],
  ['host all all 0.0.0.0/0 scram-sha-256'],
  ['host all all ::1/128 trust'],
  ['host all all 10.0.0.0/8 trust'],
  ['host all all 0.0.0.0/0 reject'],
  ['local all all trust'],
  ['local all all reject'],
  ['hostssl all all 127.0.0.1/32 trust'],
  ['hostnossl all all 127.0.0.1/32 trust'],
  ['hostssl all all 0.0.0.0/0 reject', 'host all all 0.0.0.0/0 password'],
  ['host postgres alice 0.0.0.0/0 reject', 'host second,other alice,bob 0.0.0.0/0 trust'],
  ['host sameuser all 0.0.0.0/0 trust'],
  ['host all "alice" 0.0.0.0/0 trust', 'host all bob 0.0.0.0/0 reject'],
  ['host replication all 0.0.0.0/0 trust'],
  ['host all all 0.0.0.0/0 peer'],
  ['host all all 0.0.0.0/0 cert'],
];

/** Lines that every version refuses, each between two good lines. */
const badRules = [
  'host',
  'host all',
  'host all all',
  'host all all 127.0.0.1/32',
  'host all all 127.0.0.1/33 trust',
  'host all all 127.0.0.1 trust',
  'host all all nonsense trust',
  'host all all 127.0.0.1/32 nonsense',
  'host all all 127.0.0.1/32 trust nonsense',
  'host all all 127.0.0.1/32 trust map=',
  'nonsense all all trust',
  'local all all 127.0.0.1/32 trust',
  'local all all gss',
  'hostgssenc all all 0.0.0.0/0 trust',
  'host all "open 0.0.0.0/0 trust',
  'host all +group 0.0.0.0/0 trust',
];

const hba: Scenario[] = [
  rules(
    'hba: one rule after the other',
    [],
    oneRule.flatMap((lines) => [...newRules(...lines), ...comers]),
  ),
  rules('hba: any address', ['host all bob all reject', 'host all all all scram-sha-256'], comers, { since: '1.23' }),
  rules(
    'hba: lines that cannot be read',
    ['# comment', '', 'host all alice 0.0.0.0/0 trust', ...badRules, 'host all bob 0.0.0.0/0 trust'],
    comers,
  ),
  rules(
    'hba: names from files',
    ['host @{dir}/names @{dir}/names 0.0.0.0/0 trust', 'host all @/does/not/exist 0.0.0.0/0 trust'],
    [rewriteFile('names', 'alice\n"postgres"\n'), admin('RELOAD'), ...comers],
  ),
  rules(
    'hba: several names in a line of a file',
    ['host @{dir}/names @{dir}/names 0.0.0.0/0 trust'],
    [rewriteFile('names', 'bob alice,\n# comment\n\n"postgres" x\n'), admin('RELOAD'), ...comers],
  ),
  rules(
    'hba: the file changes',
    ['host all all 0.0.0.0/0 trust'],
    [
      tryLogin(alice),
      rewriteFile('hba', `host all all 0.0.0.0/0 reject\n${CONSOLE_RULE}\n`),
      admin('RELOAD'),
      tryLogin(alice),
      rewriteFile('hba', `nonsense\n${CONSOLE_RULE}\n`),
      admin('RELOAD'),
      tryLogin(alice),
      appendIni('\n[pgbouncer]\nauth_hba_file = /does/not/exist\n'),
      admin('RELOAD'),
      tryLogin(alice),
    ],
  ),
  {
    name: 'hba: no file at all',
    settings: { auth_type: 'hba', auth_hba_file: '/does/not/exist' },
    userlist: USERLIST,
    steps: [tryLogin(alice), ...unixTry({ user: ADMIN_USER, password: ADMIN_PASSWORD, database: 'pgbouncer' })],
  },
  rules(
    'hba: maps',
    [
      'hostssl all all 0.0.0.0/0 cert map=robots',
      'local all all peer map=own',
      'host all all 0.0.0.0/0 password map=x',
    ],
    [
      tryTls({ cert: 'robot' }, { user: 'alice' }),
      tryTls({ cert: 'robot' }, { user: 'bob' }),
      tryTls({ cert: 'alice' }, { user: 'alice' }),
      ...unixTry({ user: 'alice' }),
      ...unixTry({ user: 'bob' }),
      ...unixTry({ user: ME }),
      tryLogin(alice),
      rewriteFile('ident', `robots robot.example.net bob\nown ${ME} all\n`),
      admin('RELOAD'),
      tryTls({ cert: 'robot' }, { user: 'bob' }),
      ...unixTry({ user: 'bob' }),
      rewriteFile('ident', 'one two\nown /regular postgres\nthree four five six\nown "open x\n'),
      admin('RELOAD'),
      ...unixTry({ user: 'bob' }),
      tryTls({ cert: 'robot' }, { user: 'bob' }),
    ],
    { since: '1.23' },
    ['# comment', 'robots robot.example.net alice', 'robots "some body" bob', `own ${ME} alice`],
  ),
  rules(
    'hba: a map that is not there',
    ['local all all peer map=nothing', 'host all all 0.0.0.0/0 trust'],
    unixTry({ user: ME }),
    {
      since: '1.23',
    },
  ),
];

/** Logins with certificates of all kinds, for several names. */
const shown: Step[] = [
  tryTls({ cert: 'alice' }, { user: 'alice' }),
  tryTls({ cert: 'alice' }, { user: 'bob' }),
  tryTls({ cert: 'alice' }, { user: 'nobody' }),
  tryTls({ cert: 'robot' }, { user: 'robot' }),
  tryTls({ cert: 'stranger' }, { user: 'alice' }),
  tryTls({ cert: 'oldalice' }, { user: 'alice' }),
  tryTls({}, { user: 'alice' }),
  tryLogin({ user: 'alice' }),
  tryTls({ cert: 'alice' }, { user: 'alice', database: 'pgbouncer' }),
];

const cert: Scenario[] = [
  ...['verify-full'].map(
    (mode): Scenario => ({
      name: `auth_type=cert, client_tls_sslmode=${mode}`,
      settings: { ...TLS, client_tls_sslmode: mode, auth_type: 'cert' },
      userlist: { alice: '', bob: '' },
      steps: [
        ...shown,
        loginTls('a', { cert: 'alice' }, { user: 'alice' }),
        query('a', 'SELECT current_user'),
        bye('a'),
      ],
      raceInLog: true,
    }),
  ),
  rules('cert: by rules', ['hostssl all alice 0.0.0.0/0 cert', 'host all bob 0.0.0.0/0 trust'], shown),
  rules(
    'cert: of the right name and the password, too',
    ['hostssl all alice 0.0.0.0/0 cert', 'hostssl all all 0.0.0.0/0 md5'],
    [...shown, tryTls({ cert: 'alice' }, { user: 'bob', password: 'secret' })],
  ),
];

const peer: Scenario[] = [
  rules(
    'peer',
    ['local all all peer', 'host all all 0.0.0.0/0 peer'],
    [
      ...unixTry({ user: ME }),
      ...unixTry({ user: 'alice' }),
      ...unixTry({ user: 'nobody' }),
      tryLogin({ user: ME }),
      tryTls({}, { user: ME }),
    ],
  ),
];

const P_USER = { user: 'p_user', password: 'secret' };

const pam: Scenario[] = [
  {
    name: 'auth_type=pam',
    needs: 'pam',
    settings: { auth_type: 'pam' },
    steps: [
      tryLogin(P_USER),
      tryLogin({ ...P_USER, password: 'wrong' }),
      tryLogin({ ...P_USER, password: '' }),
      tryLogin({ user: 'nobody', password: 'secret' }),
      tryLogin({ user: ADMIN_USER, password: 'secret', database: 'pgbouncer' }),
      ...unixTry(P_USER),
    ],
    raceInLog: true,
  },
  {
    name: 'auth_type=pam and a database with auth_user',
    needs: 'pam',
    settings: { auth_type: 'pam' },
    databases: { postgres: '{pg} auth_user=alice', forced: '{pg} dbname=postgres user=alice' },
    userlist: { alice: 'secret' },
    steps: [tryLogin(P_USER), tryLogin({ ...P_USER, database: 'forced' })],
    raceInLog: true,
  },
  rules(
    'pam by rules',
    ['host all p_user 0.0.0.0/0 pam', 'host all all 0.0.0.0/0 trust'],
    [tryLogin(P_USER), tryLogin(alice)],
    {
      needs: 'pam',
    },
  ),
];

const LUCY = { user: 'lucy', password: 'right' };
const DIRECT = 'ldapserver=127.0.0.1 ldapport={ldapport} ldapprefix="uid=" ldapsuffix=",{basedn}"';
const SEARCH = 'ldapserver=127.0.0.1 ldapport={ldapport} ldapbasedn="{basedn}"';
const URL = 'ldap://127.0.0.1:{ldapport}/{basedn}';

/** LDAP options, each for one rule. */
const ways = [
  DIRECT,
  SEARCH,
  `${SEARCH} ldapsearchattribute=mail`,
  `${SEARCH} ldapsearchfilter="(uid=$username)"`,
  `${SEARCH} ldapsearchfilter="(uid="`,
  `${SEARCH} ldapbinddn="uid=lucy,{basedn}" ldapbindpasswd=right`,
  `${SEARCH} ldapbinddn="uid=lucy,{basedn}" ldapbindpasswd=wrong`,
  'ldapserver=127.0.0.1 ldapport={ldapport} ldapbasedn="dc=nowhere"',
  `ldapurl="${URL}?uid?sub"`,
  `ldapurl="${URL}??sub?(uid=$username)"`,
  'ldapurl="http://127.0.0.1/"',
  `${SEARCH} ldaptls=1`,
  'ldapscheme=ldaps ldapserver=127.0.0.1 ldapport={ldapsport} ldapbasedn="{basedn}"',
  'ldapserver="127.0.0.2 127.0.0.1" ldapport={ldapport} ldapbasedn="{basedn}"',
  'ldapserver=127.0.0.1 ldapport=1 ldapprefix="uid="',
  'ldapserver=127.0.0.1',
  'ldapserver=127.0.0.1 nonsense=1',
  'ldapserver=127.0.0.1 ldapport=many ldapprefix="uid="',
  '',
];

const directory: Step[] = [
  tryLogin(LUCY),
  tryLogin({ ...LUCY, password: 'wrong' }),
  tryLogin({ ...LUCY, password: '' }),
  tryLogin({ user: 'nobody', password: 'right' }),
  tryLogin({ user: 'twin', password: 'right' }),
  tryLogin({ user: '*', password: 'right' }),
  tryLogin({ user: 'lucy)(uid=*', password: 'right' }),
];

const ldap: Scenario[] = [
  {
    name: 'auth_type=ldap',
    needs: 'ldap',
    settings: { auth_type: 'ldap', auth_ldap_options: SEARCH },
    userlist: { lucy: 'other' },
    steps: [...directory, tryLogin({ user: 'lucy', password: 'other' }), ...unixTry(LUCY)],
    raceInLog: true,
  },
  {
    name: 'auth_type=ldap without options',
    needs: 'ldap',
    settings: { auth_type: 'ldap' },
    steps: [tryLogin(LUCY)],
    raceInLog: true,
  },
  // one pooler each, because after a RELOAD PgBouncer reads the old options from freed memory
  ...ways.map((way) =>
    rules(`ldap by rules: ${way}`, [`host all all 0.0.0.0/0 ldap ${way}`], directory, { needs: 'ldap' }),
  ),
];

export const ruled: Scenario[] = [...hba, ...cert, ...peer, ...pam, ...ldap];
