/*
 * The rules by which PAM judges the passwords of a pooler: one file of the machine, whose place and name are fixed. A test
 * run that is killed leaves it behind, so ours says who wrote it, and the next run replaces such a file. Anybody else's
 * stays as it is.
 */
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';

const SERVICE = '/etc/pam.d/pgbouncer';
const MARK = '# Written by a test of tsbouncer, which removes it at its end.';

/** Why the rules cannot be written on this machine; null when they can. */
export function pamMissing(): string | null {
  if (process.getuid?.() !== 0) return 'only root may write the rules of PAM';
  if (!existsSync('/etc/pam.d')) return 'there is no /etc/pam.d on this machine';
  if (existsSync(SERVICE) && !readFileSync(SERVICE, 'latin1').startsWith(MARK)) return `${SERVICE} is somebody else's`;
  return null;
}

/** Has passwords judged by a script, which gets them on standard input and exits with 0 for a right one. */
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
