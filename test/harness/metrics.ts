/*
 * Scrapes the metrics port, and checks every line of the answer.
 */

import assert from 'node:assert/strict';
import { type IncomingMessage, request } from 'node:http';
import { request as requestTls } from 'node:https';
import { eventually } from './machine';

interface Answer {
  status: number;
  type: string;
  body: string;
}

interface Ask {
  method?: string;
  headers?: Record<string, string>;
  /** certificate of the CA: the request uses HTTPS */
  ca?: string;
}

/** One request over a connection of its own. @param to a port, or the path of a Unix socket */
export function get(
  to: number | string,
  path: string,
  { method = 'GET', headers = {}, ca }: Ask = {},
): Promise<Answer> {
  const where = typeof to === 'number' ? { host: '127.0.0.1', port: to } : { socketPath: to };
  return new Promise((settle, reject) => {
    const options = { ...where, path, method, headers, agent: false };
    const answered = (response: IncomingMessage) => {
      let body = '';
      response.setEncoding('utf8');
      response.on('data', (part: string) => {
        body += part;
      });
      response.on('end', () => {
        settle({ status: response.statusCode ?? 0, type: response.headers['content-type'] ?? '', body });
      });
    };
    const asked = ca === undefined ? request(options, answered) : requestTls({ ...options, ca }, answered);
    asked.on('error', reject);
    asked.end();
  });
}

/** Asks until the answer has that status. */
export async function becomes(port: number, path: string, status: number): Promise<Answer> {
  let last: Answer | null = null;
  await eventually(`${path} to answer ${status}`, async () => {
    last = await get(port, path).catch(() => null);
    return last?.status === status;
  });
  return last as unknown as Answer;
}

/** The names that the samples of a family have. */
function sampleNames(family: string, kind: string, open: boolean): string[] {
  if (kind === 'histogram') return [`${family}_bucket`, `${family}_count`, `${family}_sum`];
  return [open && kind === 'counter' ? `${family}_total` : family];
}

/** The samples of a text, which has to be correct in every line. */
export function samples(text: string, open: boolean): Map<string, number> {
  const found = new Map<string, number>();
  const families = new Set<string>();
  const lines = text.split('\n');
  assert.equal(lines.pop(), '');
  if (open) assert.equal(lines.pop(), '# EOF');
  let family = '';
  let kind = '';
  for (const line of lines) {
    const type = /^# TYPE (\S+) (gauge|counter|histogram)$/.exec(line);
    if (type !== null) {
      [, family = '', kind = ''] = type;
      assert.ok(!families.has(family), `twice: ${family}`);
      families.add(family);
      continue;
    }
    if (/^# HELP [a-z_]+ \S/.test(line)) continue;
    const sample =
      /^([a-z_]+)(\{[a-z_]+="(?:[^"\\\n]|\\[\\"n])*"(?:,[a-z_]+="(?:[^"\\\n]|\\[\\"n])*")*\})? (\S+)$/.exec(line);
    assert.ok(sample, `not a sample: ${line}`);
    assert.ok(sampleNames(family, kind, open).includes(sample[1] as string), line);
    assert.equal((sample[1] as string).endsWith('_total'), kind === 'counter', line);
    const key = `${sample[1]}${sample[2] ?? ''}`;
    assert.ok(!found.has(key), `twice: ${key}`);
    assert.ok(Number.isFinite(Number(sample[3])), line);
    found.set(key, Number(sample[3]));
  }
  return found;
}

/** Scrapes until the samples are as expected. @returns them */
export async function samplesBecome(
  port: number,
  what: string,
  expected: (found: Map<string, number>) => boolean,
): Promise<Map<string, number>> {
  let last = new Map<string, number>();
  await eventually(what, async () => {
    const answer = await get(port, '/metrics').catch(() => null);
    if (answer?.status !== 200) return false;
    last = samples(answer.body, false);
    return expected(last);
  });
  return last;
}

export interface Histogram {
  /** upper bound in seconds, number of times up to it */
  buckets: [number, number][];
  count: number;
  /** seconds */
  sum: number;
}

/** A histogram among the samples, which has to be complete; null if it is not there. @param labels `{…}` */
export function histogram(found: Map<string, number>, name: string, labels: string): Histogram | null {
  const start = `${name}_bucket${labels.slice(0, -1)},le="`;
  const buckets = [...found]
    .filter(([key]) => key.startsWith(start))
    .map(([key, count]): [number, number] => {
      const bound = key.slice(start.length, -2);
      return [bound === '+Inf' ? Number.POSITIVE_INFINITY : Number(bound), count];
    });
  const count = found.get(`${name}_count${labels}`);
  const sum = found.get(`${name}_sum${labels}`);
  if (buckets.length === 0 && count === undefined && sum === undefined) return null;
  assert.ok(count !== undefined && sum !== undefined, `${name}: no count or no sum`);
  for (let i = 1; i < buckets.length; i++) {
    const [[before = 0, fewer = 0] = [], [bound = 0, more = 0] = []] = buckets.slice(i - 1);
    assert.ok(before < bound && fewer <= more, `${name}: ${bound}`);
  }
  assert.deepEqual(buckets.at(-1), [Number.POSITIVE_INFINITY, count]);
  return { buckets, count, sum };
}
