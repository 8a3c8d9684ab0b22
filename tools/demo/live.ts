/*
 * The demo's live line: asks the console once a second what is going on and keeps one line of the terminal up to date.
 */

import type { Client, QueryResult } from 'pg';

const PERIOD_MS = 1000;

type Row = Record<string, string | number>;

/** Running totals of one look at the console. */
interface Totals {
  atMs: number;
  transactions: number;
  queries: number;
  bytes: number;
  clients: number;
  waiting: number;
  servers: number;
}

function sum(rows: Row[], column: string): number {
  return rows.reduce((total, row) => total + Number(row[column] ?? 0), 0);
}

async function look(console: Client): Promise<Totals> {
  const ofUsers = (result: QueryResult<Row>) => result.rows.filter((row) => row.database !== 'pgbouncer');
  const stats = ofUsers(await console.query<Row>('SHOW STATS'));
  const pools = ofUsers(await console.query<Row>('SHOW POOLS'));
  return {
    atMs: Date.now(),
    transactions: sum(stats, 'total_xact_count'),
    queries: sum(stats, 'total_query_count'),
    bytes: sum(stats, 'total_received') + sum(stats, 'total_sent'),
    clients: sum(pools, 'cl_active') + sum(pools, 'cl_waiting'),
    waiting: sum(pools, 'cl_waiting'),
    servers: sum(pools, 'sv_active') + sum(pools, 'sv_idle') + sum(pools, 'sv_used'),
  };
}

/** One line, at most 79 columns, so that a terminal never wraps it. */
function lineOf(before: Totals, now: Totals): string {
  const seconds = Math.max((now.atMs - before.atMs) / 1000, 0.001);
  const rate = (after: number, earlier: number) => Math.round((after - earlier) / seconds);
  const kB = Math.round(rate(now.bytes, before.bytes) / 1000);
  const parts = [
    `${rate(now.transactions, before.transactions)} tx/s`,
    `${rate(now.queries, before.queries)} queries/s`,
    `${kB} kB/s`,
    `${now.clients} clients (${now.waiting} waiting)`,
    `${now.servers} servers`,
  ];
  return parts.join(' | ').slice(0, 79);
}

/**
 * Shows the line until `stopped` settles, then leaves the terminal on a fresh line.
 * @param console a connection to the console, open; an error on it ends the line quietly
 */
export async function showLive(console: Client, out: NodeJS.WriteStream, stopped: Promise<unknown>): Promise<void> {
  let running = true;
  let wake: () => void = () => {};
  void stopped.finally(() => {
    running = false;
    wake();
  });
  try {
    let before = await look(console);
    while (running) {
      await new Promise<void>((resolve) => {
        wake = resolve;
        setTimeout(resolve, PERIOD_MS).unref();
      });
      if (!running) break;
      const now = await look(console);
      out.write(`\r\x1b[K${lineOf(before, now)}`);
      before = now;
    }
  } catch {
    // the pooler went away; whoever watches the process says so
  }
  out.write('\r\x1b[K');
}
