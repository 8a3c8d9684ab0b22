/*
 * One side of the comparison: a pooler, the clients of a scenario, and their results. A scenario runs on both sides at
 * the same time, with one PostgreSQL server.
 */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Bouncer, type BouncerOptions, dropDir, eventually, tempDir, user, withTimeout } from '../test/harness';
import { RawClient } from '../test/harness/raw-client';
import { freePort } from '../tools/postgres';
import { giveTo } from '../tools/unprivileged';
import type { Item } from './decode';
import { maskItem, maskLog, type Names, unordered } from './mask';
import type { Need, TestBed } from './test-bed';

/** The two programs. */
export interface Program {
  /** `original` or `tsbouncer` */
  label: string;
  original: boolean;
  /** its name in usage texts */
  program: string;
  /** the command line that starts it */
  command: readonly string[];
}

/**
 * Configuration in a scenario, with placeholders: `{pg}`, `{dead}`, `{mute}`, `{tls}` … stand for `host=… port=…`.
 * `{pgport}` is the port of PostgreSQL, which is in use, and `{dir}` the side's folder. `{certs}` is the folder of the
 * certificates, and `{certs:NAME}` the text of a certificate. `{self}` and `{other}` are the side's own poolers.
 */
export type Config = Pick<BouncerOptions, 'databases' | 'users' | 'peers' | 'settings' | 'userlist' | 'args'>;

/** One action on both sides, with its result. */
export interface Step {
  text: string;
  run: (side: Side) => Promise<Item[]>;
}

export interface Scenario extends Config {
  name: string;
  steps: Step[];
  /** files in `{dir}`: name -> text */
  files?: { [name: string]: string };
  /** settings that PgBouncer does not have, for tsbouncer alone */
  own?: { [key: string]: string | number };
  /** a second pooler of the same program, with changes to the config of the first */
  second?: Config;
  /** false: no pooler is started, the steps run commands */
  pooler?: boolean;
  /** the order of the log lines depends on a race between sockets */
  raceInLog?: boolean;
  /** the number of repeated log lines depends on timing (retries, periods): each line counts once, in any order */
  repeatsInLog?: boolean;
  /** first version of PgBouncer that can run this */
  since?: string;
  /** what PgBouncer must have been built with */
  needs?: Need;
}

/** A step's outcome on one side. */
export interface Record {
  text: string;
  items: Item[];
  /** why the step failed */
  fault: string | null;
}

/** Limit of a step, longer than every wait inside a step. */
const STEP_MS_MAX = 30_000;

const DEFAULT_DATABASES = { postgres: '{pg}', '*': '{pg}' };

function removed(dir: string): boolean {
  try {
    dropDir(dir);
    return true;
  } catch {
    return false;
  }
}

export class Side {
  readonly clients = new Map<string, RawClient>();
  bouncer: Bouncer | null = null;
  /** the second pooler, if the scenario has one */
  other: Bouncer | null = null;
  /** processes that were replaced, oldest first */
  readonly gone: Bouncer[] = [];
  dir = '';
  names: Names = { ports: new Map(), dirs: [] };
  private words: { [word: string]: string } = {};
  /** set by the step that waited for the end of the process */
  endSeen = false;

  constructor(
    readonly program: Program,
    readonly testBed: TestBed,
  ) {}

  /** Replaces the placeholders in a text. */
  fill(text: string): string {
    const words = { ...this.testBed.words, ...this.words };
    return text
      .replace(/\{certs:(\S+)\}/g, (_, name) => readFileSync(join(words.certs ?? '', name), 'latin1'))
      .replace(/\{(\w+)\}/g, (whole, word) => words[word] ?? whole);
  }

  fillConfig(config: Config): Config {
    const filled = <T>(entries: { [key: string]: T } | undefined): { [key: string]: T } | undefined => {
      if (entries === undefined) return undefined;
      const pairs = Object.entries(entries).map(([k, v]) => [k, typeof v === 'string' ? this.fill(v) : v]);
      return Object.fromEntries(pairs);
    };
    return {
      databases: filled(config.databases),
      users: filled(config.users),
      peers: filled(config.peers),
      settings: filled(config.settings),
      userlist: config.userlist,
      args: config.args,
    };
  }

  async start(scenario: Scenario): Promise<void> {
    const port = await freePort();
    const otherPort = scenario.second === undefined ? 0 : await freePort();
    this.dir = tempDir('side');
    this.words = {
      dir: this.dir,
      self: `host=127.0.0.1 port=${port}`,
      other: `host=127.0.0.1 port=${otherPort}`,
      selfport: String(port),
      otherport: String(otherPort),
    };
    for (const [name, text] of Object.entries(scenario.files ?? {})) this.write(name, text);
    if (scenario.pooler !== false) this.bouncer = await this.startPooler(port, scenario);
    if (scenario.second !== undefined)
      this.other = await this.startPooler(otherPort, { ...scenario, ...scenario.second });
    const own: [number, string][] = [
      [port, 'LISTEN'],
      [otherPort, 'OTHER'],
    ];
    const dirs = [this.bouncer?.dir, this.other?.dir, this.dir].filter((dir) => dir !== undefined);
    this.names = { ports: new Map([...own, ...this.testBed.ports]), dirs: [...dirs, this.testBed.words.certs ?? ''] };
  }

  private startPooler(port: number, wanted: Config & Pick<Scenario, 'own'>): Promise<Bouncer> {
    const config = this.fillConfig({ databases: DEFAULT_DATABASES, ...wanted });
    const own = this.program.original ? {} : wanted.own;
    return Bouncer.start({
      ...config,
      settings: { listen_port: port, ...config.settings, ...own },
      original: this.program.original,
      env: this.testBed.env,
    });
  }

  /** Writes a file into the side's folder. */
  write(name: string, text: string): void {
    const path = join(this.dir, name);
    writeFileSync(path, this.fill(text), 'latin1');
    giveTo(user, path);
  }

  /** The pooler; throws in a scenario without one. */
  get pooler(): Bouncer {
    if (this.bouncer === null) throw new Error('this scenario has no pooler');
    return this.bouncer;
  }

  /** Sets the current process; the previous process is kept for its log. */
  succeed(next: Bouncer): void {
    if (this.bouncer !== null) this.gone.push(this.bouncer);
    this.bouncer = next;
  }

  /** A client that an earlier step connected. */
  client(name: string): RawClient {
    const client = this.clients.get(name);
    if (client === undefined) throw new Error(`no client ${name}`);
    return client;
  }

  /** Connects a client under that name; clients named `other …` connect to the second pooler. */
  async open(name: string, unix = false): Promise<RawClient> {
    const pooler = (name.startsWith('other') ? this.other : null) ?? this.pooler;
    const path = join(pooler.socketDir, `.s.PGSQL.${pooler.port}`);
    const client = unix ? await RawClient.connect({ path }) : await pooler.raw();
    this.clients.set(name, client);
    return client;
  }

  async runStep(step: Step): Promise<Record> {
    try {
      const items = await withTimeout(step.run(this), 'the end of the step', STEP_MS_MAX);
      return { text: step.text, items: items.map((item) => maskItem(item, this.names)), fault: null };
    } catch (err) {
      const fault = (err as Error).message.split('\n')[0] as string;
      return { text: step.text, items: [], fault };
    }
  }

  /** Stops the pooler if it still runs. @returns its exit and its log as the last records */
  async finish({ raceInLog, repeatsInLog }: Scenario): Promise<Record[]> {
    const records: Record[] = [];
    const ending = async (which: string, bouncer: Bouncer) => {
      const end = await bouncer.expectEnd();
      records.push({ text: `exit code${which}`, items: [String(end.code ?? end.signal)], fault: null });
      const lines = maskLog(bouncer.log.text, this.names);
      const counted = repeatsInLog === true ? [...new Set(lines)] : lines;
      const items = raceInLog === true || repeatsInLog === true ? unordered(counted) : counted;
      records.push({ text: `log${which}`, items, fault: null });
    };
    for (const old of this.gone) await ending(' of the old process', old);
    if (this.bouncer !== null) {
      if (!this.endSeen) this.bouncer.signal('SIGQUIT');
      await ending('', this.bouncer);
    }
    if (this.other !== null) {
      this.other.signal('SIGQUIT');
      await ending(' of the other pooler', this.other);
    }
    return records;
  }

  /** Removes everything. */
  async clear(): Promise<void> {
    for (const client of this.clients.values()) client.socket.destroy();
    for (const pooler of [...this.gone, this.other, this.bouncer]) await pooler?.stop().catch(() => {});
    // a daemon that is exiting may still write its files
    if (this.dir !== '') await eventually('an end to files', () => removed(this.dir));
  }
}
