/*
 * What the entrypoint of the container image decides before the pooler starts: its command line, and the config if the
 * environment describes it. Called by src/entrypoint.ts.
 */

import { readFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { OPTIONS } from '../options';
import { changeUser } from '../user';
import { BITNAMI_CONFIG, BITNAMI_VARIABLES, bitnamiConfig } from './bitnami';
import { authFileText, type ImageConfig, iniText } from './config-text';
import { EDOBURU_VARIABLES, edoburuConfig } from './edoburu';
import { isForeign, writeFiles } from './files';
import { type Environment, ImageError, isGiven } from './variables';
import { ZALANDO_VARIABLES, zalandoConfig } from './zalando';

const DEFAULT_CONFIG = '/etc/pgbouncer/pgbouncer.ini';
const PROGRAMS = ['pgbouncer', 'tsbouncer'];
/** The user of the image, for a container that is started as root. */
const IMAGE_USER = 'pgbouncer';
/** Arguments with which no pooler starts. */
const NO_POOLER = ['mkauth', '-h', '--help', '-V', '--version'];

/** The command line of the pooler, and what has to be done before. */
export interface ImageStart {
  /** pgbouncer or tsbouncer */
  program: string;
  args: string[];
  waitFor: ImageConfig['waitFor'];
  /** lines for the log of the container */
  notices: string[];
}

interface Family {
  image: string;
  variables: readonly string[];
  config: (env: Environment) => ImageConfig;
}

const FAMILIES: readonly Family[] = [
  { image: 'edoburu/pgbouncer', variables: EDOBURU_VARIABLES, config: edoburuConfig },
  { image: 'bitnami/pgbouncer', variables: BITNAMI_VARIABLES, config: bitnamiConfig },
  { image: "Zalando's pooler", variables: ZALANDO_VARIABLES, config: zalandoConfig },
];

/** The image whose variables are set, or null. Throws an ImageError if there are several. */
function findFamily(env: Environment): Family | null {
  const found = FAMILIES.filter(({ variables }) => variables.some((name) => isGiven(env, name)));
  if (found.length < 2) return found[0] ?? null;
  const names = found.map(({ image, variables }) => `${variables.find((name) => isGiven(env, name))} (${image})`);
  throw new ImageError(`variables of several images are set: ${names.join(', ')}`);
}

/** The position of the config file among the arguments, or -1. */
function configPosition(args: readonly string[]): number {
  for (let at = 0; at < args.length; at++) {
    const arg = args[at] as string;
    const takesNext = OPTIONS.some(({ name, letter, takesValue }) => {
      return takesValue && (arg === `--${name}` || (/^-[^-]/.test(arg) && arg.endsWith(letter)));
    });
    if (takesNext) at++;
    else if (!arg.startsWith('-')) return at;
  }
  return -1;
}

/** Splits what follows the entrypoint: the name of the program, if it is there, and its arguments. */
function readCommand(given: readonly string[]): { program: string; args: string[] } {
  const first = given[0] ?? '';
  if (PROGRAMS.includes(basename(first))) return { program: basename(first), args: given.slice(1) };
  if (first !== '' && !first.startsWith('-') && !first.endsWith('.ini') && first !== 'mkauth') {
    throw new ImageError(`this image starts only pgbouncer: use --entrypoint ${first} for another program`);
  }
  return { program: 'pgbouncer', args: [...given] };
}

/** Says which users are missing in an auth_file that the entrypoint does not write. */
function noticeMissingUsers(config: ImageConfig, authFile: string): void {
  const text = readFileSync(authFile, 'latin1');
  for (const { name } of config.users) {
    if (!text.includes(`"${name.replaceAll('"', '""')}"`)) config.notices.push(`user ${name} is not in ${authFile}`);
  }
}

/** Writes the ini, and the auth_file unless the user has one. @returns the path of the ini */
function writeConfig(config: ImageConfig, path: string): string {
  const authFile = config.settings.get('auth_file') ?? join(dirname(path), 'userlist.txt');
  const isOwn = !isForeign(authFile);
  config.settings.set('auth_file', authFile);
  if (!isOwn) noticeMissingUsers(config, authFile);
  const folder = writeFiles(dirname(path), (place) => {
    if (isOwn) config.settings.set('auth_file', join(place, 'userlist.txt'));
    const ini = { [basename(path)]: iniText(config) };
    return isOwn ? { ...ini, 'userlist.txt': authFileText(config) } : ini;
  });
  return join(folder, basename(path));
}

/** Whether the command line says as which user to run. */
function namesUser(args: readonly string[]): boolean {
  return args.some((arg) => /^-[^-]*u|^--us/.test(arg));
}

/**
 * Gives up root for the user of the image. A user in the config then has no effect, because only root could become that
 * user; the inis of other images name theirs.
 * @param args the command line, which gets an option for this. Does nothing if it names a user
 */
function becomeImageUser(args: string[]): void {
  if (namesUser(args)) return;
  if (process.getuid?.() === 0) changeUser(IMAGE_USER);
  args.push('-u', '');
}

/**
 * Prepares the start. A config file that exists is used as it is; else the variables have to describe one.
 * @param given what follows the entrypoint on the command line
 * @param becomeUser gives up root before any file is read or written. Throws an ImageError
 */
export function prepareImage(
  given: readonly string[],
  env: Environment,
  becomeUser: (args: string[]) => void = becomeImageUser,
): ImageStart {
  const { program, args } = readCommand(given);
  const start: ImageStart = { program, args, waitFor: null, notices: [] };
  if (args.some((arg) => NO_POOLER.includes(arg))) return start;
  becomeUser(args);
  let at = configPosition(args);
  if (at < 0) at = args.push(isForeign(BITNAMI_CONFIG) ? BITNAMI_CONFIG : DEFAULT_CONFIG) - 1;
  const path = args[at] as string;
  if (isForeign(path)) {
    start.notices.push(`using ${path}`);
    return start;
  }
  if (isForeign(BITNAMI_CONFIG)) {
    args[at] = BITNAMI_CONFIG;
    start.notices.push(`using ${BITNAMI_CONFIG}`);
    return start;
  }
  const family = findFamily(env);
  if (family === null) {
    throw new ImageError(`there is no ${path}: mount one, or set DATABASE_URL, DB_HOST or POSTGRESQL_HOST`);
  }
  const config = family.config(env);
  args[at] = writeConfig(config, path);
  args.push(...config.options);
  start.waitFor = config.waitFor;
  start.notices.push(...config.notices, `wrote ${args[at]} from the variables of ${family.image}`);
  return start;
}
