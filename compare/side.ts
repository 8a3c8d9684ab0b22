/*
 * One side of the comparison: a pooler, the clients that a scenario connected to it, and what they saw. A scenario runs on
 * two sides at the same time, against one PostgreSQL.
 */
import { join } from 'node:path';
import {
  Bouncer,
  type BouncerOptions,
  dropDir,
  eventually,
  freePort,
  type PgCluster,
  RawClient,
  tempDir,
} from '../test/harness';
import type { Item } from './decode';
import { maskItem, maskLog, type Names, unordered } from './mask';

/** The two programs. */
export interface Program {
  /** `original` or `tsbouncer` */
  label: string;
  original: boolean;
  /** what it calls itself in its usage texts */
  program: string;
  /** the command line that starts it */
  command: readonly string[];
}

/** What all scenarios share. */
export interface World {
  cluster: PgCluster;
  /** refuses connections */
  deadPort: number;
  /** accepts connections and never answers */
  mutePort: number;
  /** of the C original, as in `1.18.0` */
  originalVersion: string;
}

/** Configuration as scenarios write it; `{pg}`, `{dead}`, `{mute}` stand for `host=… port=…`, `{pgport}` for that
 * port, which is taken, `{dir}` for the folder. */
export type Config = Pick<BouncerOptions, 'databases' | 'users' | 'settings' | 'userlist' | 'args'>;

/** One thing that is done on both sides, and what came of it. */
export interface Step {
  text: string;
  run: (side: Side) => Promise<Item[]>;
}

export interface Scenario extends Config {
  name: string;
  steps: Step[];
  /** false: no pooler is started, the steps run commands */
  pooler?: boolean;
  /** the log's lines come in an order that depends on which socket is faster */
  raceInLog?: boolean;
  /** how often the log repeats a line depends on timing (retries, periods): each line counts once, in any order */
  repeatsInLog?: boolean;
  /** first version of the original that can run this */
  since?: string;
}

/** A step's outcome on one side. */
export interface Record {
  text: string;
  items: Item[];
  /** why the step could not be done at all */
  fault: string | null;
}

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
  dir = '';
  names: Names = { ports: new Map(), dir: '' };
  /** set by the step that waited for the end of the process */
  endSeen = false;

  constructor(
    readonly program: Program,
    readonly world: World,
  ) {}

  /** Puts this side's ports and folders into a text. */
  fill(text: string): string {
    const { cluster, deadPort, mutePort } = this.world;
    return text
      .replaceAll('{pg}', `host=127.0.0.1 port=${cluster.port}`)
      .replaceAll('{pgport}', String(cluster.port))
      .replaceAll('{pgsocket}', `host=${cluster.socketDir} port=${cluster.port}`)
      .replaceAll('{dead}', `host=127.0.0.1 port=${deadPort}`)
      .replaceAll('{mute}', `host=127.0.0.1 port=${mutePort}`)
      .replaceAll('{dir}', this.dir);
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
      settings: filled(config.settings),
      userlist: config.userlist,
      args: config.args,
    };
  }

  async start(scenario: Scenario): Promise<void> {
    const port = await freePort();
    this.dir = tempDir('side');
    const config = this.fillConfig({ databases: DEFAULT_DATABASES, ...scenario });
    if (scenario.pooler !== false) {
      this.bouncer = await Bouncer.start({
        ...config,
        settings: { listen_port: port, ...config.settings },
        original: this.program.original,
      });
    }
    const ports: [number, string][] = [
      [port, 'LISTEN'],
      [this.world.cluster.port, 'PG'],
      [this.world.deadPort, 'DEAD'],
      [this.world.mutePort, 'MUTE'],
    ];
    this.names = { ports: new Map(ports), dir: this.bouncer?.dir ?? this.dir };
  }

  /** The pooler; throws in a scenario without one. */
  get pooler(): Bouncer {
    if (this.bouncer === null) throw new Error('this scenario has no pooler');
    return this.bouncer;
  }

  /** A client that an earlier step connected. */
  client(name: string): RawClient {
    const client = this.clients.get(name);
    if (client === undefined) throw new Error(`no client ${name}`);
    return client;
  }

  /** Connects a client that later steps know by that name. */
  async open(name: string, unix = false): Promise<RawClient> {
    const path = join(this.pooler.socketDir, `.s.PGSQL.${this.pooler.port}`);
    const client = unix ? await RawClient.connect({ path }) : await this.pooler.raw();
    this.clients.set(name, client);
    return client;
  }

  async runStep(step: Step): Promise<Record> {
    try {
      const items = await step.run(this);
      return { text: step.text, items: items.map((item) => maskItem(item, this.names)), fault: null };
    } catch (err) {
      const fault = (err as Error).message.split('\n')[0] as string;
      return { text: step.text, items: [], fault };
    }
  }

  /** Ends the pooler if the scenario has not, and returns its end and its log as the last records. */
  async finish({ raceInLog, repeatsInLog }: Scenario): Promise<Record[]> {
    const records: Record[] = [];
    if (this.bouncer !== null) {
      if (!this.endSeen) this.bouncer.signal('SIGQUIT');
      const end = await this.bouncer.expectEnd();
      records.push({ text: 'exit code', items: [String(end.code ?? end.signal)], fault: null });
      const lines = maskLog(this.bouncer.log.text, this.names);
      const counted = repeatsInLog === true ? [...new Set(lines)] : lines;
      const items = raceInLog === true || repeatsInLog === true ? unordered(counted) : counted;
      records.push({ text: 'log', items, fault: null });
    }
    return records;
  }

  /** Leaves nothing behind. */
  async clear(): Promise<void> {
    for (const client of this.clients.values()) client.socket.destroy();
    await this.bouncer?.stop().catch(() => {});
    // a daemon that is just ending may still put its files there
    if (this.dir !== '') await eventually('an end to files', () => removed(this.dir));
  }
}
