/*
 * Parses the command line, into either plain options or a finished answer (help, version, error) for src/main.ts. Texts
 * and exit codes are those of PgBouncer (main.c) and of the C library (getopt_long).
 *
 * There are two steps. A walk applies getopt_long's rules (clusters such as -dvv, -uNAME, unique abbreviations, options
 * after the file name, `--`) and stops at the first error. Then minimist parses the normalised list that the walk
 * returns.
 */
import minimist from 'minimist';
import { loadNative } from '../core/base/syslog';
import { PGBOUNCER_COMPAT_VERSION, TSBOUNCER_VERSION } from '../core/base/version';

/** The parsed options. `configFile` and `user` are byte strings (one char = one byte). */
export interface Options {
  configFile: string;
  daemon: boolean;
  quiet: boolean;
  /** --check: check the config and the files it names, and report problems */
  check: boolean;
  /** --check --connect: log in to the databases too */
  connect: boolean;
  /** --check --diff: print what a RELOAD would change */
  diff: boolean;
  reboot: boolean;
  /** number of -v options */
  verbose: number;
  /** null = not given; '' = given and empty, which overrides the config's `user` with no user */
  user: string | null;
}

/** The command line needs no pooler: main.ts writes these texts (UTF-8) and exits. */
export interface Answer {
  exitCode: number;
  stdout: string;
  stderr: string;
}

/** The name at the start of every text, without a path. */
export const PROGRAM_NAME = 'tsbouncer';

/**
 * The options of the table: long name, letter ('' = none), and whether a value follows. Options that PgBouncer's names
 * could be mistaken for have to be written in full.
 */
export const OPTIONS: readonly { name: string; letter: string; takesValue: boolean; inFull?: boolean }[] = [
  { name: 'quiet', letter: 'q', takesValue: false },
  { name: 'verbose', letter: 'v', takesValue: false },
  { name: 'help', letter: 'h', takesValue: false },
  { name: 'daemon', letter: 'd', takesValue: false },
  { name: 'version', letter: 'V', takesValue: false },
  { name: 'reboot', letter: 'R', takesValue: false },
  { name: 'user', letter: 'u', takesValue: true },
  { name: 'check', letter: '', takesValue: false },
  { name: 'connect', letter: '', takesValue: false, inFull: true },
  { name: 'diff', letter: '', takesValue: false, inFull: true },
];

type Option = (typeof OPTIONS)[number];

/** Result of the walk: a normalised list for minimist, or the answer at which it stopped. */
interface Walk {
  tidy: string[];
  files: string[];
  answer: Answer | null;
}

/** The text of --help. */
export function usageText(program: string = PROGRAM_NAME): string {
  return `${program} is a connection pooler for PostgreSQL.

Usage:
  ${program} [OPTION]... CONFIG_FILE

Options:
  -d, --daemon         run in background (as a daemon)
  -q, --quiet          run quietly
  -R, --reboot         do an online reboot
  -u, --user=USERNAME  assume identity of USERNAME
  -v, --verbose        increase verbosity
  -V, --version        show version, then exit
  -h, --help           show this help, then exit

      --check          load all that CONFIG_FILE names, report what is wrong with it, then exit
      --connect        with --check: log in to the databases too
      --diff           with --check: print what a RELOAD would change

Instead of CONFIG_FILE:
  ${program} mkauth FILE CONNSTR   write the users of a PostgreSQL server to FILE, for auth_file
  ${program} top [--once] CONFIG_FILE   show the pools of the running process, the most saturated first

Compatible with PgBouncer ${PGBOUNCER_COMPAT_VERSION}: <https://www.pgbouncer.org/>
`;
}

/**
 * The text of --version, one line each: the PgBouncer version that this program follows, for scripts that read the first
 * line, its own version, and its runtime and libraries.
 */
export function versionText(): string {
  const loop = loadNative()?.libuvVersion() ?? `libuv ${process.versions.uv}`;
  return `PgBouncer ${PGBOUNCER_COMPAT_VERSION}
tsbouncer ${TSBOUNCER_VERSION}
loop: ${loop}
tls: OpenSSL ${process.versions.openssl}
node ${process.version}
`;
}

function refusal(program: string, message: string): Answer {
  const stderr = `${program}: ${message}\nTry "${program} --help" for more information.\n`;
  return { exitCode: 1, stdout: '', stderr };
}

/** The answer to --help and --version; later arguments are not parsed. */
function answerOf(option: Option, program: string): Answer | null {
  if (option.letter === 'h') return { exitCode: 0, stdout: usageText(program), stderr: '' };
  if (option.letter === 'V') return { exitCode: 0, stdout: versionText(), stderr: '' };
  return null;
}

/** The option that `name` selects, or the C library's error text. `typed` is the text after the two dashes. */
function findLong(name: string, typed: string): Option | string {
  const exact = OPTIONS.find((option) => option.name === name);
  if (exact !== undefined) return exact;
  const candidates = OPTIONS.filter((option) => option.name.startsWith(name) && option.inFull !== true);
  if (candidates.length === 0) return `unrecognized option '--${typed}'`;
  if (candidates.length === 1) return candidates[0] as Option;
  const names = candidates.map((option) => ` '--${option.name}'`).join('');
  return `option '--${typed}' is ambiguous; possibilities:${names}`;
}

function take(walk: Walk, option: Option, value: string, program: string): void {
  walk.tidy.push(option.takesValue ? `--${option.name}=${value}` : `--${option.name}`);
  walk.answer = answerOf(option, program);
}

/** Handles one `--name` or `--name=value`. @returns how many of the following arguments it consumed (0 or 1) */
function walkLong(walk: Walk, typed: string, next: string | undefined, program: string): number {
  const equals = typed.indexOf('=');
  const name = equals < 0 ? typed : typed.slice(0, equals);
  const option = findLong(name, typed);
  if (typeof option === 'string') {
    walk.answer = refusal(program, option);
  } else if (!option.takesValue) {
    if (equals >= 0) walk.answer = refusal(program, `option '--${option.name}' doesn't allow an argument`);
    else take(walk, option, '', program);
  } else if (equals >= 0) {
    take(walk, option, typed.slice(equals + 1), program);
  } else if (next === undefined) {
    walk.answer = refusal(program, `option '--${option.name}' requires an argument`);
  } else {
    take(walk, option, next, program);
    return 1;
  }
  return 0;
}

/**
 * Handles one cluster of letters without its dash.
 * @returns how many of the following arguments it consumed (0 or 1)
 */
function walkShort(walk: Walk, cluster: string, next: string | undefined, program: string): number {
  for (let at = 0; at < cluster.length && walk.answer === null; at++) {
    const letter = cluster.charAt(at);
    const option = OPTIONS.find((candidate) => candidate.letter === letter);
    if (option === undefined) {
      walk.answer = refusal(program, `invalid option -- '${letter}'`);
    } else if (!option.takesValue) {
      take(walk, option, '', program);
    } else if (at + 1 < cluster.length) {
      take(walk, option, cluster.slice(at + 1), program);
      return 0;
    } else if (next === undefined) {
      walk.answer = refusal(program, `option requires an argument -- '${letter}'`);
    } else {
      take(walk, option, next, program);
      return 1;
    }
  }
  return 0;
}

function walkArguments(args: readonly string[], program: string): Walk {
  const walk: Walk = { tidy: [], files: [], answer: null };
  for (let i = 0; i < args.length && walk.answer === null; i++) {
    const arg = args[i] as string;
    if (arg === '--') {
      walk.files.push(...args.slice(i + 1));
      break;
    }
    if (arg.startsWith('--')) i += walkLong(walk, arg.slice(2), args[i + 1], program);
    else if (arg.startsWith('-') && arg.length > 1) i += walkShort(walk, arg.slice(1), args[i + 1], program);
    else walk.files.push(arg);
  }
  return walk;
}

/** Node decodes arguments as UTF-8; inside the pooler every string is a byte string. */
function byteString(text: string): string {
  return Buffer.from(text, 'utf8').toString('latin1');
}

/**
 * Reads the command line as PgBouncer's main() does.
 * @param args the arguments after the script's name
 * @param program the name at the start of the texts
 * @returns options, or the answer to give instead; errors have exit code 1
 */
export function parseOptions(args: readonly string[], program: string = PROGRAM_NAME): Options | Answer {
  const walk = walkArguments(args, program);
  if (walk.answer !== null) return walk.answer;
  if (walk.files.length !== 1) return refusal(program, 'no configuration file specified');

  const flags = OPTIONS.filter((option) => !option.takesValue).map((option) => option.name);
  const parsed = minimist([...walk.tidy, '--', ...walk.files], { boolean: flags, string: ['user'] });
  if (parsed.check !== true && (parsed.connect === true || parsed.diff === true)) {
    return refusal(program, '--connect and --diff need --check');
  }
  const users = [parsed.user ?? []].flat() as string[];
  const lastUser = users.at(-1);
  return {
    configFile: byteString(String(parsed._[0])),
    daemon: parsed.daemon === true,
    quiet: parsed.quiet === true,
    reboot: parsed.reboot === true,
    check: parsed.check === true,
    connect: parsed.connect === true,
    diff: parsed.diff === true,
    verbose: walk.tidy.filter((arg) => arg === '--verbose').length,
    user: lastUser === undefined ? null : byteString(lastUser),
  };
}
