/*
 * The TLS settings of LDAP connections: ldap.conf and environment variables, as libldap reads them.
 */

import { X509Certificate } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { join } from 'node:path';
import type { ConnectionOptions } from 'node:tls';

interface LdapConf {
  caFile: string | null;
  caDir: string | null;
  verify: boolean;
}

function applyConf(conf: LdapConf, name: string, value: string): void {
  switch (name.toUpperCase()) {
    case 'TLS_CACERT':
      conf.caFile = value;
      break;
    case 'TLS_CACERTDIR':
      conf.caDir = value;
      break;
    case 'TLS_REQCERT':
      conf.verify = !/^(never|allow)$/i.test(value);
      break;
  }
}

function readConfFile(conf: LdapConf, path: string): void {
  if (!existsSync(path)) return;
  for (const line of readFileSync(path, 'utf8').split('\n')) {
    const match = /^([A-Za-z_]+)[ \t]+(.*?)[ \t\r]*$/.exec(line);
    if (match !== null) applyConf(conf, match[1] as string, match[2] as string);
  }
}

/** Read for each login, so that a changed file takes effect at once. */
function readConf(): LdapConf {
  const conf: LdapConf = { caFile: null, caDir: null, verify: true };
  if (process.env.LDAPNOINIT !== undefined) return conf;
  for (const path of ['/etc/openldap/ldap.conf', '/etc/ldap/ldap.conf']) readConfFile(conf, path);
  if (process.env.LDAPCONF !== undefined) readConfFile(conf, process.env.LDAPCONF);
  for (const name of ['TLS_CACERT', 'TLS_CACERTDIR', 'TLS_REQCERT']) {
    const value = process.env[`LDAP${name}`];
    if (value !== undefined) applyConf(conf, name, value);
  }
  return conf;
}

function certificatesIn(dir: string): Buffer[] {
  const files = readdirSync(dir).map((name) => join(dir, name));
  return files.flatMap((file) => {
    try {
      const text = readFileSync(file);
      return new X509Certificate(text).ca ? [text] : [];
    } catch {
      return [];
    }
  });
}

/** How to connect to an LDAP server with TLS. */
export function tlsOptions(host: string): ConnectionOptions {
  const conf = readConf();
  const ca: (string | Buffer)[] = [];
  if (conf.verify && conf.caFile !== null) ca.push(readFileSync(conf.caFile));
  if (conf.verify && conf.caDir !== null) ca.push(...certificatesIn(conf.caDir));
  return {
    host,
    servername: isIP(host) === 0 ? host : '',
    rejectUnauthorized: conf.verify,
    ...(ca.length > 0 ? { ca } : {}),
  };
}
