/*
 * Small queries beside endless results: whether every stream gets its share, and how long a small query waits for its
 * answer meanwhile.
 */

import { type ChildProcess, fork } from 'node:child_process';
import { join } from 'node:path';
import { adopt, type PgCluster } from '../../test/harness';
import type { RawClient } from '../../test/harness/raw-client';
import type { Bench, Contender } from '../contenders';
import { affordableCounts } from '../descriptors';
import { login, startPooler } from '../poolers';
import { addRow, figureAim, inTurns, note, say, wanted } from '../rows';
import { options, STREAMS } from '../settings';

const SMALL_CLIENTS = 50;
const WARM_UP_MS = 2000;
const MB = 1e6;

interface StreamFigures {
  /** megabytes that a stream got in the period */
  least: number;
  most: number;
  /** streams that got nothing */
  starved: number;
  /** ms that 99 of 100 small queries took at most */
  p99: number;
  /** small queries a second */
  perSecond: number;
}

interface StreamRun {
  cluster: PgCluster;
  contender: Contender;
  streams: number;
  seconds: number;
}

function forkEnd(...args: string[]): ChildProcess {
  return adopt(fork(join(__dirname, 'stream-ends.js'), args, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] }));
}

/** The next message of the process. */
function heard<T>(child: ChildProcess): Promise<T> {
  return new Promise((settle, reject) => {
    child.once('message', (message) => settle(message as T));
    child.once('exit', () => reject(new Error('an end of the streams stopped')));
  });
}

const sleep = (ms: number) => new Promise((wake) => setTimeout(wake, ms));

/** Runs queries while `goOn` returns true. @returns the time to each answer, ms */
async function askOn(client: RawClient, goOn: () => boolean): Promise<number[]> {
  const times: number[] = [];
  while (goOn()) {
    const start = process.hrtime.bigint();
    await client.query('SELECT 1');
    times.push(Number(process.hrtime.bigint() - start) / 1e6);
  }
  return times;
}

/** Measures one period on a pooler of its own. */
async function streamsBesideQueries(run: StreamRun): Promise<StreamFigures> {
  const server = forkEnd('server');
  const port = await heard<number>(server);
  const where = `host=127.0.0.1 port=${port}`;
  const pooler = await startPooler({
    cluster: run.cluster,
    contender: run.contender,
    databases: { streams: `${where} pool_size=${run.streams}`, small: where },
  });
  const readers = forkEnd('readers', String(pooler.port), String(run.streams));
  await heard(readers);
  const clients = await login(pooler.port, new Array<string>(SMALL_CLIENTS).fill('small'));
  await sleep(WARM_UP_MS);
  let running = true;
  readers.send('forget');
  await heard(readers);
  const asking = clients.map((client) => askOn(client, () => running));
  await sleep(run.seconds * 1000);
  readers.send('tell');
  const received = (await heard<number[]>(readers)).map((bytes) => bytes / MB).sort((a, b) => a - b);
  running = false;
  const times = (await Promise.all(asking)).flat().sort((a, b) => a - b);
  await Promise.all(clients.map((client) => client.destroy()));
  readers.disconnect();
  server.disconnect();
  await pooler.stop();
  return {
    least: received[0] as number,
    most: received.at(-1) as number,
    starved: received.filter((bytes) => bytes === 0).length,
    p99: times[Math.floor(times.length * 0.99)] as number,
    perSecond: times.length / run.seconds,
  };
}

/** On separate poolers, one after the other, because both ends of the streams need a CPU each. */
export async function benchStreams({ cluster, contenders }: Bench): Promise<void> {
  const titleOf = (streams: number) => `${streams} endless streams`;
  for (const streams of affordableCounts(
    STREAMS.filter((count) => wanted(titleOf(count))),
    2,
  )) {
    const name = titleOf(streams);
    say(name);
    const seconds = options.quick ? 1 : 10;
    const least = addRow(`${name}, least that one got in ${seconds} s`, 'MB', 1, { better: 'more' });
    const most = addRow(`${name}, most that one got`, 'MB', 1);
    const starved = addRow(`${name}, how many got nothing`, '', 0, { aims: figureAim(0) });
    const p99 = addRow(`${name}, p99 of small queries beside them`, 'ms', 1);
    const perSecond = addRow(`${name}, small queries/s beside them`, '/s', 0, { better: 'more' });
    await inTurns(contenders, async (who) => {
      const figures = await streamsBesideQueries({ cluster, contender: who, streams, seconds });
      note(least, who, figures.least);
      note(most, who, figures.most);
      note(starved, who, figures.starved);
      note(p99, who, figures.p99);
      note(perSecond, who, figures.perSecond);
    });
  }
}
