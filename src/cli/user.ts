/*
 * Switches to the user that -u or the setting `user` names, as PgBouncer's change_user().
 */
import { die, strerror } from '../core/base/log';
import { native } from '../core/base/native';

/** Switches to user `name` and its group, dropping root's other groups. Ends the process on failure. */
export function changeUser(name: string): void {
  const pw = native.getpwnam(name);
  if (pw === null) die(`could not find user '${name}' to switch to`);
  if (process.getuid?.() === 0) {
    try {
      // groups first, while this process still has the right to change them
      process.setgroups?.([pw.gid]);
    } catch (err) {
      die(`failed to reset groups: ${strerror(err)}`);
    }
  }
  try {
    process.setgid?.(pw.gid);
    process.setuid?.(pw.uid);
  } catch (err) {
    die(`failed to assume identity of user '${name}': ${strerror(err)}`);
  }
  if (process.getuid?.() !== pw.uid || process.geteuid?.() !== pw.uid) die('setuid() failed to work');
}
