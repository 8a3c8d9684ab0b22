/*
 * The demo's live line: queries the console once a second and updates one line of the terminal.
 */

import type { Client, QueryResult } from 'pg';

const PERIOD_MS = 1000;

type Row = Record<string, string | number>;

/** Totals read from the console at one time. */
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

/** The line, at most 79 columns wide, so that a terminal does not wrap it. */
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
 * Shows the line until `stopped` settles, then leaves the terminal on a new line.
 * @param console an open connection to the console; an error on it ends the line without a message
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
    // the pooler has exited; the caller reports that
  }
  out.write('\r\x1b[K');
}
