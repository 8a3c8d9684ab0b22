/*
 * The files of the metrics port: its token, and the certificate and the key for TLS.
 */

import { readFileSync } from 'node:fs';
import { strerror } from '../base/log';
import { trimSpace } from '../base/strutil';
import type { MetricsSecrets } from '../base/worker-messages';
import { cf } from './settings';

/** Is told about a setting whose file cannot be used. */
type Complain = (setting: string, text: string) => void;

function readSetting(setting: string, path: string, complain: Complain): string | null {
  try {
    return readFileSync(Buffer.from(path, 'latin1'), 'utf8');
  } catch (err) {
    complain(setting, `could not open ${setting} ${path}: ${strerror(err)}`);
    return null;
  }
}

/** The bearer token in the first line of a file. */
function readToken(path: string, complain: Complain): string | null {
  if (path === '') return '';
  const text = readSetting('metrics_token_file', path, complain);
  const [line = ''] = (text ?? '').split('\n');
  const token = trimSpace(line);
  if (text !== null && token === '') complain('metrics_token_file', `${path} has no token`);
  return token === '' ? null : token;
}

/** What the files have; null after a complaint. Whether certificate and key can be used is not checked. */
export function readMetricsSecrets(complain: Complain): MetricsSecrets | null {
  const { metricsTokenFile, metricsTlsCertFile, metricsTlsKeyFile } = cf;
  const token = readToken(metricsTokenFile, complain);
  if (token === null) return null;
  if (metricsTlsCertFile === '' && metricsTlsKeyFile === '') return { token, tls: null };
  if (metricsTlsCertFile === '' || metricsTlsKeyFile === '') {
    const given = metricsTlsCertFile === '' ? 'metrics_tls_key_file' : 'metrics_tls_cert_file';
    complain(given, 'TLS needs metrics_tls_cert_file and metrics_tls_key_file');
    return null;
  }
  const cert = readSetting('metrics_tls_cert_file', metricsTlsCertFile, complain);
  const key = readSetting('metrics_tls_key_file', metricsTlsKeyFile, complain);
  return cert === null || key === null ? null : { token, tls: { cert, key } };
}
