/*
 * Certificates for one test file, made on the spot with the openssl command: authorities, and what they sign.
 */
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { giveTo } from '../../src/demo/unprivileged';
import { tempDir, user } from './machine';

/** Files of a certificate and its key. */
export interface Cert {
  cert: string;
  key: string;
}

/** What a certificate says. */
export interface Subject {
  cn: string;
  /** as `DNS:localhost,IP:127.0.0.1` */
  san?: string;
  /** 'ec' (default) or 'rsa' */
  keyType?: 'ec' | 'rsa';
  /** how long it is good for, 2 by default; negative: it has expired */
  days?: number;
}

const KEY_ARGS = {
  ec: ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1'],
  rsa: ['-newkey', 'rsa:2048'],
};

function openssl(...args: string[]): void {
  execFileSync('openssl', args, { stdio: 'pipe' });
}

export class CertFolder {
  readonly dir = tempDir('certs');

  /** An authority of that name. */
  authority(name: string): Cert {
    const made = { cert: join(this.dir, `${name}.crt`), key: join(this.dir, `${name}.key`) };
    const extensions = ['-addext', 'basicConstraints=critical,CA:TRUE', '-addext', 'keyUsage=keyCertSign,cRLSign'];
    const subject = ['-subj', `/O=tests/CN=${name}`];
    openssl(
      'req',
      '-x509',
      ...KEY_ARGS.ec,
      '-nodes',
      '-days',
      '2',
      '-keyout',
      made.key,
      '-out',
      made.cert,
      ...subject,
      ...extensions,
    );
    return this.give(made);
  }

  /** A certificate signed by `ca`, in files of that name (replaced when they exist). */
  issue(ca: Cert, name: string, subject: Subject): Cert {
    const made = { cert: join(this.dir, `${name}.crt`), key: join(this.dir, `${name}.key`) };
    const request = join(this.dir, `${name}.csr`);
    const extensions = join(this.dir, `${name}.ext`);
    writeFileSync(
      extensions,
      subject.san === undefined ? 'basicConstraints=CA:FALSE\n' : `subjectAltName=${subject.san}\n`,
    );
    const keyArgs = KEY_ARGS[subject.keyType ?? 'ec'];
    openssl(
      'req',
      '-new',
      ...keyArgs,
      '-nodes',
      '-keyout',
      made.key,
      '-out',
      request,
      '-subj',
      `/O=tests/CN=${subject.cn}`,
    );
    const signing = ['-CA', ca.cert, '-CAkey', ca.key, '-CAcreateserial', '-extfile', extensions];
    signing.push('-days', String(subject.days ?? 2));
    openssl('x509', '-req', '-in', request, ...signing, '-out', made.cert);
    return this.give(made);
  }

  private give(made: Cert): Cert {
    giveTo(user, this.dir);
    return made;
  }
}
