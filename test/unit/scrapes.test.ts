/*
 * Scrapes of many pools by clients that read slowly or not at all: what the metrics thread keeps for them is bounded.
 */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { startThread, type Thread } from '../../src/core/base/thread';
import type { MetricsReport, MetricsWorkerData } from '../../src/core/base/worker-messages';
import { metricsLayout as layout } from '../../src/core/report/metrics-report';
import { freePort } from '../../tools/postgres';
import { startTestLoop } from '../harness/backend';
import { after, before } from '../harness/limits';
import { eventually, it } from '../harness/machine';
import { becomes, get, samples } from '../harness/metrics';

/** Their text has about 6 MB. */
const POOLS = 400;
const READERS = 50;
const MB = 1e6;
/** The kernel's buffers hold some megabytes of an answer. */
const GROWTH_MAX = 100 * MB;

startTestLoop(65536);

let port = 0;
let thread: Thread;
const readers: Socket[] = [];

/** @param first tells the pools, too */
function report(first: boolean): MetricsReport {
  const width = 1 + layout.pool.length;
  const timesWidth = 1 + layout.timings.length * (layout.timingBounds.length + 2);
  const pools = new Float64Array(POOLS * width).fill(123456);
  const timings = new Float64Array(POOLS * timesWidth).fill(123456);
  const ids = Array.from({ length: POOLS }, (_, id) => id);
  for (const id of ids) pools[id * width] = timings[id * timesWidth] = id;
  return {
    version: 'test',
    notReady: '',
    lists: {},
    maxClientConn: 1,
    maxUserConnections: 1,
    authQuery: {},
    tallies: new Float64Array(layout.tallies.length),
    threads: [],
    longestTurn: 1,
    more: false,
    newPools: first ? ids.map((id) => ({ id, database: `database_${id}`, user: `user_${id}` })) : [],
    pools,
    timings,
    gonePools: [],
    newDatabases: [],
    databases: new Float64Array(0),
    goneDatabases: [],
    live: { version: 'test', time: 1, wall: 1, up: 1, lines: [], linesLeftOut: 0, reboots: [] },
  };
}

before(async () => {
  port = await freePort();
  const secrets = { token: '', tls: null };
  const data: Omit<MetricsWorkerData, 'port' | 'wakeFd'> = { host: '127.0.0.1', listenPort: port, secrets, layout };
  thread = startThread('metrics.js', data);
  thread.port.postMessage(report(true));
  await becomes(port, '/metrics', 200);
});

after(() => {
  for (const reader of readers) reader.destroy();
  thread.end();
});

/** A client that has asked, and reads nothing. */
async function slowReader(): Promise<Socket> {
  const reader = connect({ port, host: '127.0.0.1' }).on('error', () => {});
  readers.push(reader);
  await once(reader, 'connect');
  reader.pause();
  reader.write('GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n');
  // requests are handled in the order of their arrival
  await get(port, '/livez');
  return reader;
}

async function rest(reader: Socket): Promise<string> {
  let text = '';
  reader.setEncoding('latin1').on('data', (part: string) => {
    text += part;
  });
  reader.resume();
  await once(reader, 'close');
  return text.slice(text.indexOf('\r\n\r\n') + 4);
}

it('clients that do not read their answers share its text', async () => {
  const before = process.memoryUsage.rss();
  for (let i = 0; i < READERS; i++) await slowReader();
  const growth = process.memoryUsage.rss() - before;
  assert.ok(growth < GROWTH_MAX, `${Math.round(growth / MB)} MB more`);
  const text = await rest(readers[READERS - 1] as Socket);
  assert.ok(text.length > 4 * MB);
  samples(text, false);
  for (const reader of readers.splice(0)) reader.destroy();
});

it('a client that is too slow is disconnected when later reports have been asked for', async () => {
  const slow: Socket[] = [];
  for (let i = 0; i < 6; i++) {
    thread.port.postMessage(report(false));
    slow.push(await slowReader());
  }
  const texts = await Promise.all(slow.map(rest));
  const whole = texts.map((text) => text.endsWith('\n') && text.length > 4 * MB);
  assert.deepEqual(whole, [false, false, true, true, true, true]);
});

it('a loop that reports nothing for ten seconds is stuck: probes and scrapes are told so until it reports again', async () => {
  const paths = ['/livez', '/readyz', '/metrics'];
  const answers = async () => (await Promise.all(paths.map((path) => get(port, path)))).map(({ status }) => status);
  thread.port.postMessage(report(false));
  await becomes(port, '/livez', 200);
  assert.deepEqual(await answers(), [200, 200, 200]);
  await becomes(port, '/livez', 503);
  assert.deepEqual(await answers(), [503, 503, 503]);
  thread.port.postMessage(report(false));
  await becomes(port, '/livez', 200);
  assert.deepEqual(await answers(), [200, 200, 200]);
});

it('a new connection ends the oldest of 64, so that probes are answered', async () => {
  const silent = Array.from({ length: 64 }, () => connect({ port, host: '127.0.0.1' }).on('error', () => {}));
  readers.push(...silent);
  await Promise.all(silent.map((socket) => once(socket, 'connect')));
  assert.equal((await get(port, '/livez')).status, 200);
  await eventually('the end of the oldest', () => silent[0]?.closed === true);
  assert.equal(silent.filter((socket) => !socket.closed).length, 63);
});
