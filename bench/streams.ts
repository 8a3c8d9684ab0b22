/*
 * Small queries beside endless results: whether every stream gets its share, and how long a small query waits for its
 * answer meanwhile.
 */

import { type ChildProcess, fork } from 'node:child_process';
import { join } from 'node:path';
import { adopt, Bouncer, type PgCluster } from '../test/harness';
import type { RawClient } from '../test/harness/raw-client';
import { BENCH_SETTINGS, login } from './poolers';

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
  original: boolean;
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
export async function streamsBesideQueries(run: StreamRun): Promise<StreamFigures> {
  const server = forkEnd('server');
  const port = await heard<number>(server);
  const where = `host=127.0.0.1 port=${port}`;
  const pooler = await Bouncer.start({
    cluster: run.cluster,
    original: run.original,
    databases: { streams: `${where} pool_size=${run.streams}`, small: where },
    settings: BENCH_SETTINGS,
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
