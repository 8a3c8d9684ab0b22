/*
 * Environment variables of the container image. NAME_FILE names a file with the value of NAME, for secrets. Values are
 * byte strings without line breaks and NUL, so that no value can add a line to a file that is made of them.
 */

import { readFileSync } from 'node:fs';
import { strerror } from '../../core/base/log';

/** The user's mistake; the message is for the user. */
export class ImageError extends Error {}

export type Environment = Readonly<Record<string, string | undefined>>;

/** Kubernetes sets NAME_PORT=tcp://… for each Service of the namespace. No such value is meant for the pooler. */
const SERVICE_ADDRESS = /^(?:tcp|udp|sctp):\/\//;

function ownValue(env: Environment, name: string): string {
  const value = env[name] ?? '';
  return name.endsWith('_PORT') && SERVICE_ADDRESS.test(value) ? '' : value;
}

/** Whether a variable, or the file of its value, is given. An empty variable counts as missing, as in the other images. */
export function isGiven(env: Environment, name: string): boolean {
  return ownValue(env, name) !== '' || (env[`${name}_FILE`] ?? '') !== '';
}

/** Bytes of a variable or of its file; the file has precedence. Line breaks at the end of a file do not count. */
function rawValue(env: Environment, name: string): string {
  const path = env[`${name}_FILE`] ?? '';
  if (path !== '') {
    try {
      return readFileSync(path, 'latin1').replace(/[\r\n]+$/, '');
    } catch (err) {
      throw new ImageError(`${name}_FILE: could not read "${path}": ${strerror(err)}`);
    }
  }
  const value = ownValue(env, name);
  // Node has replaced bytes that are not UTF-8
  if (value.includes('\ufffd')) throw new ImageError(`${name}: not valid UTF-8; use ${name}_FILE`);
  return Buffer.from(value, 'utf8').toString('latin1');
}

/** Refuses what would begin another line, or end the text. @param name what the message blames */
export function checkOneLine(name: string, value: string): string {
  if (/[\0\r\n]/.test(value)) throw new ImageError(`${name}: a line break or NUL is not allowed`);
  return value;
}

/** The value of a variable, '' if it is missing. Throws an ImageError. */
export function readVariable(env: Environment, name: string): string {
  return checkOneLine(name, rawValue(env, name));
}

/** The lines of a variable, without empty lines. Throws an ImageError. */
export function readLines(env: Environment, name: string): string[] {
  const lines = rawValue(env, name).split(/\r?\n/);
  return lines.map((line) => checkOneLine(name, line)).filter((line) => line.trim() !== '');
}
