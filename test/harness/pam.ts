/*
 * PAM's rules for the pooler's service, in a file of the machine with a fixed path. A test run that is killed leaves
 * the file behind, so the file is marked as written by the tests, and the next run replaces it. Any other file is left
 * alone.
 */
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';

const SERVICE = '/etc/pam.d/pgbouncer';
const MARK = '# Written by a test of tsbouncer, which removes it at its end.';

/** Why the rules cannot be written on this machine, or null. */
export function pamMissing(): string | null {
  if (process.getuid?.() !== 0) return 'only root may write the rules of PAM';
  if (!existsSync('/etc/pam.d')) return 'there is no /etc/pam.d on this machine';
  if (existsSync(SERVICE) && !readFileSync(SERVICE, 'latin1').startsWith(MARK))
    return `${SERVICE} was not written by the tests`;
  return null;
}

/** Lets a script check passwords: it reads a password from standard input and exits with 0 if it is right. */
export function writePamRules(script: string): void {
  const rules = [
    MARK,
    `auth required pam_exec.so expose_authtok quiet ${script}`,
    'account required pam_permit.so',
    '',
  ];
  writeFileSync(SERVICE, rules.join('\n'));
}

export function removePamRules(): void {
  rmSync(SERVICE, { force: true });
}
