/*
 * TLS on both sides: what each sslmode accepts, certificates, protocols and ciphers, and unexpected bytes.
 */

import { GSSENC_REQUEST, PROTOCOL_30, SSL_REQUEST, startupPacket } from '../../test/harness/raw-client';
import type { Scenario, Step } from '../side';
import {
  admin,
  bye,
  change,
  connect,
  login,
  loginUnix,
  query,
  receive,
  requests,
  rewriteFile,
  send,
  showSettings,
  tryLogin,
} from '../steps';
import { afterYes, injected, insideTls, loginTls, tryTls } from '../tls-steps';

const FILES = {
  client_tls_key_file: '{certs}/site.key',
  client_tls_cert_file: '{certs}/site.crt',
  client_tls_ca_file: '{certs}/ca.crt',
};

const startFor = (database: string) => startupPacket(PROTOCOL_30, { user: 'postgres', database });

/** Logins of every kind, for every sslmode. */
const allLogins: Step[] = [
  tryLogin({}),
  tryTls(),
  tryTls({ cert: 'alice' }),
  tryTls({ cert: 'stranger' }),
  tryTls({ cert: 'oldalice' }),
  requests('g', GSSENC_REQUEST, SSL_REQUEST),
  loginUnix('u'),
  bye('u'),
  loginTls('a', { cert: 'alice' }),
  query('a', 'SELECT 1'),
  query('a', "SELECT repeat('x', 300000)"),
  admin('SHOW CLIENTS'),
];

const clientModes: Scenario[] = ['disable', 'allow', 'prefer', 'require', 'verify-ca', 'verify-full'].map((mode) => ({
  name: `client_tls_sslmode=${mode}`,
  settings: { ...FILES, client_tls_sslmode: mode },
  steps: allLogins,
  raceInLog: true,
}));

const protocols: Step[] = ['TLSv1', 'TLSv1.1', 'TLSv1.2', 'TLSv1.3'].map((version) =>
  tryTls({ tls: { minVersion: version, maxVersion: version } as object }),
);

function clientProtocols(setting: string): Scenario {
  return {
    name: `client_tls_protocols=${setting}`,
    settings: { ...FILES, client_tls_sslmode: 'require', client_tls_protocols: setting },
    steps: protocols,
    raceInLog: true,
  };
}

function clientCiphers(setting: string, ...offers: string[]): Scenario {
  return {
    name: `client_tls_ciphers=${setting}`,
    settings: { ...FILES, client_tls_sslmode: 'require', client_tls_ciphers: setting },
    steps: [...offers.map((ciphers) => tryTls({ tls: { ciphers, maxVersion: 'TLSv1.2' } })), tryTls()],
    raceInLog: true,
  };
}

/** The databases of the server scenarios, each named after its TLS server. */
const SERVERS = Object.fromEntries(
  [
    'pg',
    'tls',
    'tlsmoved',
    'tlscn',
    'tlswild',
    'tlsexpired',
    'tlsstranger',
    'tls12',
    'tlsasks',
    'tlsinjects',
    'tlsrefuses',
    'tlserror',
    'tlsnonsense',
  ].map((word) => [word, `{${word}} dbname=postgres`]),
);
const BY_NAME = {
  nametls: 'host=localhost port={tlsport} dbname=postgres',
  namecn: 'host=localhost port={tlscnport} dbname=postgres',
  nameexpired: 'host=localhost port={tlsexpiredport} dbname=postgres',
  unix: '{pgsocket} dbname=postgres',
};

/** Short retry and wait, because failed logins to a server are repeated until the client's wait ends. */
const SHORT_TIMEOUTS = { server_login_retry: 1, query_wait_timeout: 2 };

function serverMode(mode: string, settings: Record<string, string> = {}, text = ''): Scenario {
  const databases = { ...SERVERS, ...BY_NAME };
  const names = Object.keys(databases);
  return {
    name: `server_tls_sslmode=${mode}${text}`,
    databases,
    settings: { ...SHORT_TIMEOUTS, server_tls_sslmode: mode, ...settings },
    // all at once, because failing logins take time
    steps: [
      ...names.flatMap((name) => [connect(name), send(name, 'startup', startFor(name))]),
      ...names.map((name) => receive(name)),
      admin('SHOW SERVERS'),
    ],
    repeatsInLog: true,
  };
}

const TRUSTING = { server_tls_ca_file: '{certs}/ca.crt' };

const BAD_SETTINGS: [string, Record<string, string>][] = [
  ['no key', { client_tls_key_file: '' }],
  ['a key that is not there', { client_tls_key_file: '/does/not/exist' }],
  ["another certificate's key", { client_tls_key_file: '{certs}/rsasite.key' }],
  ['no authority', { client_tls_ca_file: '/does/not/exist' }],
  ['unknown protocol', { client_tls_protocols: 'tlsv9' }],
  ['unknown cipher', { client_tls_ciphers: 'NO-SUCH-CIPHER' }],
  ['unknown curve', { client_tls_ecdhcurve: 'nocurve' }],
  ['unknown DH parameters', { client_tls_dheparams: 'nonsense' }],
];

const clientSide: Scenario[] = [
  ...clientModes,
  ...['secure', 'all', 'tlsv1.2', 'tlsv1.3', 'secure,!tlsv1.3'].map(clientProtocols),
  clientCiphers('ECDHE-ECDSA-AES128-GCM-SHA256', 'ECDHE-ECDSA-AES128-GCM-SHA256', 'ECDHE-ECDSA-AES256-GCM-SHA384'),
  clientCiphers('fast', 'ECDHE-ECDSA-AES128-GCM-SHA256', 'ECDHE-ECDSA-AES256-GCM-SHA384'),
  clientCiphers('normal', 'ECDHE-ECDSA-AES256-GCM-SHA384', 'ECDHE-ECDSA-CHACHA20-POLY1305'),
  {
    name: 'client_tls_ecdhcurve',
    settings: { ...FILES, client_tls_sslmode: 'require', client_tls_ecdhcurve: 'secp384r1' },
    steps: [tryTls({ tls: { ecdhCurve: 'P-384' } }), tryTls({ tls: { ecdhCurve: 'P-256' } }), tryTls()],
    raceInLog: true,
  },
  {
    name: 'an RSA key',
    settings: {
      ...FILES,
      client_tls_sslmode: 'require',
      client_tls_key_file: '{certs}/rsasite.key',
      client_tls_cert_file: '{certs}/rsasite.crt',
    },
    steps: [
      tryTls(),
      tryTls({ tls: { maxVersion: 'TLSv1.2' } }),
      tryTls({ tls: { ciphers: 'DHE-RSA-AES256-GCM-SHA384', maxVersion: 'TLSv1.2' } }),
    ],
    raceInLog: true,
  },
  {
    name: 'direct TLS',
    // older ones answer with an error in plain text
    since: '1.25',
    settings: { ...FILES, client_tls_sslmode: 'require' },
    steps: [
      tryTls({ direct: true, alpn: ['postgresql'] }),
      tryTls({ direct: true, alpn: ['http/1.1', 'postgresql'] }),
      tryTls({ direct: true, alpn: ['http/1.1'] }),
      tryTls({ direct: true }),
      tryTls({ alpn: ['postgresql'] }),
      tryTls({ alpn: ['http/1.1'] }),
    ],
    raceInLog: true,
  },
  {
    name: 'bytes that do not belong there',
    settings: { ...FILES, client_tls_sslmode: 'prefer', client_login_timeout: 2 },
    steps: [
      injected('a startup packet', startFor('postgres')),
      injected('one byte', Buffer.from('x')),
      injected('a second SSLRequest', startupPacket(SSL_REQUEST, Buffer.alloc(0))),
      afterYes('a startup packet', startFor('postgres')),
      afterYes('HTTP', Buffer.from('GET / HTTP/1.0\r\n\r\n')),
      insideTls('SSLRequest', startupPacket(SSL_REQUEST, Buffer.alloc(0))),
      insideTls('GSSENCRequest', startupPacket(GSSENC_REQUEST, Buffer.alloc(0))),
      insideTls('a packet of another kind', Buffer.from('GET / HTTP/1.0\r\n\r\n')),
    ],
    raceInLog: true,
  },
  {
    name: 'the files change',
    settings: { ...FILES, client_tls_sslmode: 'require', client_tls_ca_file: '{dir}/ca.crt' },
    files: { 'ca.crt': '{certs:ca.crt}' },
    steps: [
      loginTls('a', { cert: 'alice' }),
      rewriteFile('ca.crt', '{certs:otherca.crt}'),
      admin('RELOAD'),
      tryTls({ cert: 'alice' }),
      tryTls({ cert: 'stranger' }),
      query('a', 'SELECT 1'),
      rewriteFile('ca.crt', 'no certificate\n'),
      admin('RELOAD'),
      tryTls({ cert: 'stranger' }),
      query('a', 'SELECT 2'),
      bye('a'),
    ],
    raceInLog: true,
  },
  {
    name: 'settings change',
    settings: { ...FILES, client_tls_sslmode: 'prefer' },
    steps: [
      login('a'),
      loginTls('b'),
      change('TLS required', { settings: { client_tls_sslmode: 'require' } }),
      admin('RELOAD'),
      tryLogin({}),
      query('a', 'SELECT 1'),
      change('certificates required', { settings: { client_tls_sslmode: 'verify-full' } }),
      admin('RELOAD'),
      tryTls(),
      query('b', 'SELECT 1'),
      change('no TLS', { settings: { client_tls_sslmode: 'disable' } }),
      admin('RELOAD'),
      tryTls(),
      query('b', 'SELECT 1'),
      showSettings('client_tls_sslmode'),
      admin("SET client_tls_sslmode = 'prefer'"),
      tryTls(),
      bye('a', 'b'),
    ],
    raceInLog: true,
  },
  {
    name: 'set while running',
    settings: { ...FILES, client_tls_sslmode: 'require' },
    steps: BAD_SETTINGS.flatMap(([text, settings]) => [
      tryTls(),
      change(text, { settings }),
      admin('RELOAD'),
      tryTls(),
      tryLogin({}),
      change('good again', {}),
      admin('RELOAD'),
    ]),
    raceInLog: true,
  },
];

const serverSide: Scenario[] = [
  ...['disable', 'allow', 'prefer', 'require'].map((mode) => serverMode(mode)),
  ...['verify-ca', 'verify-full'].map((mode) => serverMode(mode, TRUSTING)),
  serverMode('require', TRUSTING, ' with an authority'),
  serverMode(
    'verify-full',
    { ...TRUSTING, server_tls_key_file: '{certs}/pooler.key', server_tls_cert_file: '{certs}/pooler.crt' },
    " with the pooler's own certificate",
  ),
  serverMode('require', { server_tls_protocols: 'tlsv1.3' }, ' and TLS 1.3'),
  serverMode('require', { server_tls_ciphers: 'ECDHE-ECDSA-AES128-GCM-SHA256' }, ' and one cipher'),
  {
    name: 'server settings change',
    databases: { postgres: '{tls} dbname=postgres' },
    settings: { ...SHORT_TIMEOUTS, server_tls_sslmode: 'disable', pool_mode: 'transaction' },
    steps: [
      login('a'),
      query('a', 'SELECT 1'),
      admin('SHOW SERVERS'),
      change('TLS to servers', { settings: { server_tls_sslmode: 'require' } }),
      admin('RELOAD'),
      query('a', 'SELECT 2'),
      admin('SHOW SERVERS'),
      change('of a known authority', { settings: { server_tls_sslmode: 'verify-ca', ...TRUSTING } }),
      admin('RELOAD'),
      query('a', 'SELECT 3'),
      admin('SHOW SERVERS'),
      bye('a'),
    ],
    raceInLog: true,
  },
];

export const tls: Scenario[] = [...clientSide, ...serverSide];
