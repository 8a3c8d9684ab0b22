/*
 * Certificates and settings for tests in which connections of a chain of poolers use TLS, to clients, to servers, or both.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ConnectionOptions } from 'node:tls';
import { type Cert, CertFolder } from './certs';
import type { ChainOptions } from './reboot-chain';

type Settings = Record<string, string>;

/** A CA, and the certificate of localhost that it has signed. */
export class TlsPlace {
  readonly certs = new CertFolder();
  readonly ca: Cert;
  readonly site: Cert;
  /** for clients */
  readonly trusting: ConnectionOptions;
  readonly toClients: Settings;
  readonly toServers: Settings;
  /** settings of PostgreSQL */
  readonly ofServers: Settings;

  constructor() {
    const { certs } = this;
    this.ca = certs.authority('ca');
    this.site = certs.issue(this.ca, 'site', { cn: 'localhost', san: 'DNS:localhost,IP:127.0.0.1' });
    this.trusting = { ca: readFileSync(this.ca.cert, 'utf8'), servername: 'localhost' };
    this.toClients = {
      client_tls_sslmode: 'allow',
      client_tls_key_file: this.site.key,
      client_tls_cert_file: this.site.cert,
      client_tls_ca_file: this.ca.cert,
    };
    this.toServers = { server_tls_sslmode: 'verify-full', server_tls_ca_file: this.ca.cert };
    this.ofServers = { ssl: 'on', ssl_cert_file: this.site.cert, ssl_key_file: this.site.key };
  }

  /** These options with TLS on both sides: raw clients over TCP use it, and so do servers over TCP. */
  secure(options: ChainOptions): ChainOptions {
    const settings = { ...this.toClients, ...this.toServers, ...options.settings };
    return { ...options, tls: this.trusting, settings };
  }

  /** These options with TLS on both sides, or without, although PostgreSQL offers it. */
  optionsOf(options: ChainOptions, secured: boolean): ChainOptions {
    if (secured) return this.secure(options);
    return { ...options, settings: { server_tls_sslmode: 'disable', ...options.settings } };
  }

  /** For libpq: part of a connect string. Without a client certificate, which libpq would look for in root's home. */
  get libpq(): string {
    return `host=localhost sslmode=verify-full sslrootcert=${this.ca.cert} sslcert=${join(this.certs.dir, 'none')}`;
  }
}

/** Whether the connections of a test use TLS, with a word for its name. */
export const TRANSPORTS: readonly [secured: boolean, suffix: string][] = [
  [false, ''],
  [true, ', with TLS'],
];
