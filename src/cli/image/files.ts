/*
 * Where the entrypoint of the image writes its files: in the folder of the config if it is writable, else in a folder of
 * its own below /tmp. Files that it wrote before are recognised by their first line, and replaced.
 */

import {
  closeSync,
  existsSync,
  fchmodSync,
  lstatSync,
  mkdirSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { strerror } from '../../core/base/log';
import { ImageError } from './variables';

/** The first line: a comment in an ini file and in an auth_file. */
const MARK = '; written by the entrypoint of the image, from its environment: do not edit\n';

/** Whether there is a file that this program has not written. */
export function isForeign(path: string): boolean {
  if (!existsSync(path)) return false;
  try {
    const fd = openSync(path, 'r');
    const start = Buffer.alloc(MARK.length);
    const length = readSync(fd, start, 0, MARK.length, 0);
    closeSync(fd);
    return start.toString('latin1', 0, length) !== MARK;
  } catch {
    return true;
  }
}

/**
 * Writes a file that only this user may read, and replaces it at once, so that a reload never sees a part. Throws as fs
 * does.
 */
function writeOwn(path: string, text: string): void {
  const draft = `${path}.new`;
  rmSync(draft, { force: true });
  const fd = openSync(draft, 'wx', 0o600);
  fchmodSync(fd, 0o600);
  writeSync(fd, Buffer.from(MARK + text, 'latin1'));
  closeSync(fd);
  renameSync(draft, path);
}

/** A folder below `parent` that only this user can have made. Throws an ImageError if another user has. */
function ownFolder(parent: string): string {
  const uid = process.getuid?.() ?? 0;
  const path = join(parent, `tsbouncer-${uid}`);
  mkdirSync(path, { recursive: true, mode: 0o700 });
  const stat = lstatSync(path);
  if (!stat.isDirectory() || stat.uid !== uid || (stat.mode & 0o022) !== 0) {
    throw new ImageError(`${path} belongs to another user`);
  }
  return path;
}

/**
 * Writes files where that is possible. `texts` gets the folder, because one file names the other.
 * @returns the folder. Throws an ImageError if no folder is writable
 */
export function writeFiles(folder: string, texts: (folder: string) => Readonly<Record<string, string>>): string {
  const reasons: string[] = [];
  for (const place of [() => folder, () => ownFolder('/tmp')]) {
    try {
      const found = place();
      for (const [name, text] of Object.entries(texts(found))) writeOwn(join(found, name), text);
      return found;
    } catch (err) {
      if (err instanceof ImageError) throw err;
      reasons.push(strerror(err));
    }
  }
  throw new ImageError(`the config can be written neither to ${folder} (${reasons[0]}) nor to /tmp (${reasons[1]})`);
}
