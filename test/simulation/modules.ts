/*
 * Loads the pooler's compiled modules again and again, each time with a state of its own, for several processes in one. What they
 * would take from the real machine (files, random numbers, the process, the wall clock) is given to them instead.
 */
import { readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { compileFunction } from 'node:vm';
import type { Wanted } from './scenario';

/** dist-test/src: this file is compiled to dist-test/test/simulation. */
const SOURCE = join(__dirname, '..', '..', 'src');

/** A change of one module's compiled text. */
interface Edit {
  /** below src, without its ending */
  file: string;
  /** stands there exactly once */
  find: string;
  replace: string;
}

/** A fault that is put into the modules before they run. */
export interface Mutation {
  name: string;
  /** where it shows */
  wanted: Wanted;
  edits: Edit[];
}

/** What modules see of the world outside. */
export interface Surroundings {
  native: object;
  /** modules of Node by name; others are the real ones */
  builtins: Record<string, unknown>;
  process: object;
  Date: unknown;
}

type Wrapper = (...args: unknown[]) => void;
interface Loaded {
  exports: unknown;
}

const PARAMETERS = ['exports', 'require', 'module', '__filename', '__dirname', 'process', 'globalThis', 'Date'];
/** Modules of Node that do nothing but compute. */
const HARMLESS = new Set(['node:path', 'node:util', 'node:buffer', 'node:module']);

const compiled = new Map<string, Wrapper>();

/** The text of a compiled module with faults in it. Throws when a place is not found, or is not the only one. */
function mutated(text: string, edits: Edit[]): string {
  let changed = text;
  for (const { file, find, replace } of edits) {
    const parts = changed.split(find);
    if (parts.length !== 2) throw new Error(`the text to change is ${parts.length - 1} times in ${file}: ${find}`);
    changed = parts.join(replace);
  }
  return changed;
}

/** Throws when a fault cannot be put in. */
export function checkMutation({ edits }: Mutation): void {
  for (const { file } of edits) {
    const text = readFileSync(join(SOURCE, `${file}.js`), 'utf8');
    mutated(
      text,
      edits.filter((edit) => edit.file === file),
    );
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

  /** @param name below src, without its ending */
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
