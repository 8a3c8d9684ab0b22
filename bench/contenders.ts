/*
 * The programs that the benchmark compares: tsbouncer, PgBouncer, tsbouncer with other settings (--variant), and other
 * programs (BENCH_ALSO). Each takes an ini as its last argument.
 */
import { originalBin, type PgCluster } from '../test/harness';
import type { Cert } from '../test/harness/certs';
import { OURS, remark, say, THEIRS } from './rows';
import { options } from './settings';

export interface Contender {
  /** as in the table */
  name: string;
  kind: 'tsbouncer' | 'PgBouncer' | 'other';
  /** of kind other: the program and its first arguments */
  command: string[];
  /** [pgbouncer], on top of those of the benchmark */
  settings: Record<string, string>;
  /** as the program reports it; its command if it does not */
  version: string;
  /** left out instead of failing if the program does not have a setting */
  optional: boolean;
}

/** What every part of the benchmark works with. */
export interface Bench {
  cluster: PgCluster;
  contenders: Contender[];
  /** path of the script of pgbench */
  script: string;
  /** a self-signed certificate for the poolers' TLS */
  identity: Cert;
}

function makeContender(name: string, kind: Contender['kind']): Contender {
  return { name, kind, command: [], settings: {}, version: name, optional: false };
}

/**
 * The settings of a --variant: SETTING=VALUE, separated by commas. A part without = belongs to the value before it.
 * Throws if there is none.
 */
export function variantSettings(text: string): Record<string, string> {
  const settings: Record<string, string> = {};
  let last: string | null = null;
  for (const part of text.split(',')) {
    const at = part.indexOf('=');
    if (at < 0 && last !== null) {
      settings[last] = `${settings[last]},${part.trim()}`;
      continue;
    }
    last = part.slice(0, Math.max(at, 0)).trim();
    if (last === '') throw new Error(`--variant is SETTING=VALUE, not ${part}`);
    settings[last] = part.slice(at + 1).trim();
  }
  return settings;
}

function variantOf(text: string, optional: boolean): Contender {
  return { ...makeContender(`${OURS} ${text}`, 'tsbouncer'), settings: variantSettings(text), optional };
}

function otherOf(text: string): Contender {
  const at = text.indexOf('=');
  const command = text
    .slice(at + 1)
    .split(/\s+/)
    .filter((word) => word !== '');
  if (at <= 0 || command.length === 0) throw new Error(`BENCH_ALSO is NAME=COMMAND, not ${text}`);
  return { ...makeContender(text.slice(0, at).trim(), 'other'), command };
}

/** All that were asked for; PgBouncer only if it is installed. */
export function allContenders(): Contender[] {
  const contenders = [makeContender(OURS, 'tsbouncer')];
  if (originalBin() === null) say('PgBouncer is not installed: no ratios');
  else contenders.push(makeContender(THEIRS, 'PgBouncer'));
  contenders.push(...options.defaultVariants.map((text) => variantOf(text, true)));
  contenders.push(...options.variants.map((text) => variantOf(text, false)));
  contenders.push(
    ...options.also
      .split(';')
      .filter((text) => text.trim() !== '')
      .map(otherOf),
  );
  const names = contenders.map(({ name }) => name);
  const twice = names.find((name, at) => names.indexOf(name) !== at);
  if (twice !== undefined) throw new Error(`two contenders have the name ${twice}`);
  return contenders;
}

/** Whether a contender of kind PgBouncer has this version or a later one; all others are assumed to be able to. */
export function isSince(contender: Contender, since: [number, number]): boolean {
  if (contender.kind !== 'PgBouncer') return true;
  const [, major, minor] = (/(\d+)\.(\d+)/.exec(contender.version) ?? []).map(Number) as [number, number, number];
  return major > since[0] || (major === since[0] && minor >= since[1]);
}

/** Those whose version has the feature; a remark names the others. */
export function withFeature(contenders: Contender[], what: string, since: [number, number]): Contender[] {
  return contenders.filter((contender) => {
    const able = isSince(contender, since);
    if (!able) remark(`${contender.version} has no ${what} (${since.join('.')} has): no figure there`);
    return able;
  });
}
