/*
 * Switching to the user that -u or the setting `user` names, as the original's change_user.
 */
import { die, strerror } from '../core/base/log';
import { native } from '../core/base/native';

/** Becomes `name`, with that user's group and, from root, no other; ends the process when that is not possible. */
export function changeUser(name: string): void {
  const pw = native.getpwnam(name);
  if (pw === null) die(`could not find user '${name}' to switch to`);
  if (process.getuid?.() === 0) {
    try {
      // groups first: afterwards there is no right to change them any more
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
