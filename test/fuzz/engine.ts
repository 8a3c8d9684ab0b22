/*
 * The fuzzer: runs a target with its corpus, and then with mutations and generated inputs. Every case is determined by
 * the seed, the target's name and its number, which a failure reports. See CONTRIBUTING.md.
 *
 *   FUZZ_SEED      another seed than the usual one
 *   FUZZ_SECONDS   run for that long in all, instead of each target's usual number of cases; inputs that fail are kept in
 *                  the corpus
 */

import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { logState } from '../../src/core/base/log';
import { Random } from '../harness/hostile/random';
import { PROJECT_DIR } from '../harness/machine';

export interface Target {
  /** the corpus is in test/fuzz/corpus/<name> */
  name: string;
  /** usual number of cases */
  cases: number;
  /** words with a meaning for the target, which mutations insert */
  words: readonly string[];
  /** generates an input, for targets with a generator */
  make?(random: Random): Buffer;
  /** throws if a property is violated; `random` is for choices that are not part of the input */
  run(input: Buffer, random: Random): void;
}

const CORPUS_DIR = join(PROJECT_DIR, 'test', 'fuzz', 'corpus');
const USUAL_SEED = 20_150_409;
/** Longer inputs only take longer. */
const INPUT_MAX = 64 * 1024;
/** No input takes this long on any machine, unless the target loops or takes quadratic time. */
const CASE_MS_MAX = 20_000;

/** Most of an error that is shown. */
const SHOWN_MAX = 4000;

const secondsGiven = Number(process.env.FUZZ_SECONDS ?? '0');
const seed = process.env.FUZZ_SEED ? Number(process.env.FUZZ_SEED) >>> 0 : USUAL_SEED;

function corpusOf(target: Target): { name: string; input: Buffer }[] {
  const dir = join(CORPUS_DIR, target.name);
  if (!existsSync(dir)) return [];
  return readdirSync(dir)
    .sort()
    .map((name) => ({ name, input: readFileSync(join(dir, name)) }));
}

function randomOf(target: Target, index: number): Random {
  const mixed = createHash('sha256').update(`${seed} ${target.name} ${index}`).digest();
  return new Random(mixed.readUInt32LE(0));
}

const NUMBERS = [0, 1, 2, 3, 4, 5, 7, 8, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x1_0000, 0x7fff_ffff];
const HIGH_NUMBERS = [0x8000_0000, 0xffff_fffb, 0xffff_fffc, 0xffff_fffe, 0xffff_ffff];

function splice(bytes: Buffer, at: number, drop: number, insert: Buffer): Buffer {
  return Buffer.concat([bytes.subarray(0, at), insert, bytes.subarray(at + drop)]);
}

/** One change. */
function mutateOnce(bytes: Buffer, random: Random, target: Target, corpus: readonly Buffer[]): Buffer {
  const at = random.below(bytes.length + 1);
  switch (random.below(9)) {
    case 0:
      return splice(bytes, at, random.below(12), Buffer.alloc(0));
    case 1:
      return splice(bytes, at, 0, random.bytes(random.between(1, 6)));
    case 2: {
      const copy = Buffer.from(bytes);
      if (at < copy.length) copy[at] = (copy[at] as number) ^ (1 << random.below(8));
      return copy;
    }
    case 3: {
      // a wrong length, in network byte order
      const number = Buffer.alloc(4);
      number.writeUInt32BE(random.pick(random.one(3) ? HIGH_NUMBERS : NUMBERS));
      const width = random.pick([1, 2, 4, 4]);
      return splice(bytes, at, random.one(4) ? 0 : width, number.subarray(4 - width));
    }
    case 4: {
      const from = random.below(bytes.length + 1);
      return splice(bytes, at, 0, Buffer.from(bytes.subarray(from, from + random.between(1, 60))));
    }
    case 5: {
      const other = corpus.length > 0 ? random.pick(corpus) : bytes;
      const from = random.below(other.length + 1);
      return splice(bytes, at, random.below(20), Buffer.from(other.subarray(from, from + random.between(1, 200))));
    }
    case 6:
      return bytes.subarray(0, at);
    default: {
      const word = target.words.length > 0 ? random.pick(target.words) : '\0';
      return splice(bytes, at, random.one(2) ? 0 : random.below(word.length + 1), Buffer.from(word, 'latin1'));
    }
  }
}

function inputOf(target: Target, random: Random, corpus: readonly Buffer[]): Buffer {
  const made = target.make !== undefined && (corpus.length === 0 || random.one(2)) ? target.make(random) : null;
  let input = made ?? (corpus.length > 0 ? Buffer.from(random.pick(corpus)) : random.bytes(random.below(60)));
  // some generated inputs stay unchanged
  const changes = made !== null && random.one(2) ? 0 : random.between(1, 6);
  for (let left = changes; left > 0; left--) input = mutateOnce(input, random, target, corpus);
  return input.subarray(0, INPUT_MAX);
}

function keep(target: Target, input: Buffer): string {
  const dir = join(CORPUS_DIR, target.name);
  mkdirSync(dir, { recursive: true });
  const path = join(dir, `found-${createHash('sha256').update(input).digest('hex').slice(0, 12)}`);
  writeFileSync(path, input);
  return path;
}

/** Runs one case without log output; an exit of the process counts as an error. */
function runCase(target: Target, input: Buffer, random: Random, what: string): void {
  const { exit } = process;
  const { sink } = logState;
  let last = '';
  logState.sink = (_level, message) => {
    last = message;
  };
  process.exit = ((code?: number) => {
    throw new Error(`the process would end with ${code}: ${last}`);
  }) as typeof process.exit;
  const start = performance.now();
  try {
    target.run(input, random);
    const took = performance.now() - start;
    if (took > CASE_MS_MAX) throw new Error(`took ${Math.round(took)} ms`);
  } catch (err) {
    const where = secondsGiven > 0 ? `\nkept as ${keep(target, input)}` : '';
    const shown = JSON.stringify(input.toString('latin1', 0, 600));
    const said = String(err instanceof Error ? err.stack : err);
    const short = said.length > SHOWN_MAX ? `${said.slice(0, SHOWN_MAX / 2)}\n…\n${said.slice(-SHOWN_MAX / 2)}` : said;
    throw new Error(`${what}: ${short}\ninput: ${shown}${where}`);
  } finally {
    process.exit = exit;
    logState.sink = sink;
  }
}

/**
 * Runs a target: its corpus, and then its usual number of cases, or its share of FUZZ_SECONDS.
 * @param share how many targets there are
 * @returns number of cases
 */
export function fuzz(target: Target, share: number): number {
  const entries = corpusOf(target);
  const corpus = entries.map((entry) => entry.input);
  for (const { name, input } of entries) {
    // a case also depends on random choices, so each input runs several times
    for (let way = 0; way < 8; way++) runCase(target, input, randomOf(target, -1 - way), `corpus entry ${name}`);
  }
  const until = performance.now() + (secondsGiven * 1000) / share;
  let index = 0;
  for (; secondsGiven > 0 ? performance.now() < until : index < target.cases; index++) {
    const random = randomOf(target, index);
    const input = inputOf(target, random, corpus);
    runCase(target, input, random, `FUZZ_SEED=${seed} ${target.name} case ${index}`);
  }
  return index + entries.length;
}
