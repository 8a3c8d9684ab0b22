/*
 * Loads the compiled modules of the pooler several times, each time with separate state, for several processes in one.
 * Instead of the real machine (files, random numbers, the process, the wall clock) they get what the simulation passes
 * to them.
 */
import { readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { compileFunction } from 'node:vm';
import type { Wanted } from './scenario';

/** dist-test/src: this file is compiled to dist-test/test/simulation. */
const SOURCE = join(__dirname, '..', '..', 'src');

/** A change to the compiled text of one module. */
interface Edit {
  /** path below src, without extension */
  file: string;
  /** occurs exactly once */
  find: string;
  replace: string;
}

/** A fault that is put into the modules before they run. */
export interface Mutation {
  name: string;
  /** the scenario in which it can be seen */
  wanted: Wanted;
  edits: Edit[];
  /** the first seed that is tried, if another than 1 finds it sooner */
  seed?: number;
}

/** What the modules see instead of the machine. */
export interface Surroundings {
  native: object;
  /** simulated modules of Node by name; all others are the real ones */
  builtins: Record<string, unknown>;
  process: object;
  Date: unknown;
}

type Wrapper = (...args: unknown[]) => void;
interface Loaded {
  exports: unknown;
}

const PARAMETERS = ['exports', 'require', 'module', '__filename', '__dirname', 'process', 'globalThis', 'Date'];
/** Modules of Node that only compute. */
const HARMLESS = new Set(['node:path', 'node:util', 'node:buffer', 'node:module']);

const compiled = new Map<string, Wrapper>();

/** The text of a compiled module with faults in it. @throws Error if a text to change does not occur exactly once */
function mutated(text: string, edits: Edit[]): string {
  let changed = text;
  for (const { file, find, replace } of edits) {
    const parts = changed.split(find);
    if (parts.length !== 2) throw new Error(`the text to change is ${parts.length - 1} times in ${file}: ${find}`);
    changed = parts.join(replace);
  }
  return changed;
}

/**
 * A module that cannot be compiled ends every simulation, which would pass for a fault that has been found.
 * @throws Error if a fault cannot be put in, or leaves text that cannot be compiled
 */
export function checkMutation({ edits }: Mutation): void {
  for (const { file } of edits) {
    const text = readFileSync(join(SOURCE, `${file}.js`), 'utf8');
    const ofFile = edits.filter((edit) => edit.file === file);
    compileFunction(mutated(text, ofFile), PARAMETERS);
  }
}

function compile(path: string, mutation: Mutation | null): Wrapper {
  const name = relative(SOURCE, path).replace(/\.js$/, '');
  const edits = mutation?.edits.filter(({ file }) => file === name) ?? [];
  const key = edits.length === 0 ? name : `${name} ${mutation?.name}`;
  let wrapper = compiled.get(key);
  if (wrapper === undefined) {
    const text = mutated(readFileSync(path, 'utf8'), edits);
    wrapper = compileFunction(text, PARAMETERS, { filename: path }) as Wrapper;
    compiled.set(key, wrapper);
  }
  return wrapper;
}

export class Modules {
  private readonly loaded = new Map<string, Loaded>();
  /** what the modules see as globalThis */
  readonly globals: Record<string, unknown> = {};

  constructor(
    private readonly around: Surroundings,
    private readonly mutation: Mutation | null,
  ) {}

  /** @param name path below src, without extension */
  load<T>(name: string): T {
    return this.at(join(SOURCE, `${name}.js`)) as T;
  }

  private at(path: string): unknown {
    const known = this.loaded.get(path);
    if (known !== undefined) return known.exports;
    const module: Loaded = { exports: {} };
    this.loaded.set(path, module);
    const wrapper = compile(path, this.mutation);
    const dir = dirname(path);
    const { process, Date: dates } = this.around;
    const require = (id: string) => this.require(dir, id);
    wrapper(module.exports, require, module, path, dir, process, this.globals, dates);
    return module.exports;
  }

  private require(dir: string, id: string): unknown {
    if (id.endsWith('.node')) return this.around.native;
    if (id.startsWith('.')) return this.at(`${join(dir, id)}.js`);
    const given = this.around.builtins[id];
    if (given !== undefined) return given;
    if (!HARMLESS.has(id)) throw new Error(`the modules under test must not use ${id}`);
    return require(id);
  }
}
