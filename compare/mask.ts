/*
 * Masks what differs from run to run in texts, result sets and logs: times, pids, ports, pointers, folders. The rest
 * must be the same on both sides. Called by the sides and the steps.
 */
import type { Item, Table } from './decode';

/** The names of one side's values in the transcript. */
export interface Names {
  /** port number -> name */
  ports: Map<number, string>;
  /** folders of this side's files */
  dirs: readonly string[];
}

/** Console columns with clocks, handles and memory. */
const VOLATILE_COLUMNS = new Set([
  'ptr',
  'id',
  'connect_time',
  'request_time',
  'wait',
  'wait_us',
  'maxwait',
  'maxwait_us',
  'remote_pid',
  'fd',
  'cancel',
  'ttl',
  'scram_client_key',
  'scram_server_key',
  'recv_pos',
  'pkt_pos',
  'pkt_remain',
  'send_pos',
  'send_remain',
  'pkt_avail',
  'send_avail',
  'size',
  'used',
  'free',
  'memtotal',
]);

/** Columns with the pointer of another row, or empty. */
const LINK_COLUMNS = new Set(['link']);
const PORT_COLUMNS = new Set(['port', 'local_port']);
/** Statistics that are times, or depend on the start of the period. */
const CLOCK_STATISTICS = /^avg_|_time$/;
const MASKED = '#';

function portName(names: Names, port: string): string {
  return names.ports.get(Number(port)) ?? (port === '0' ? '0' : 'PORT');
}

/** Masks a text of any origin. */
function maskText(text: string, names: Names): string {
  return names.dirs
    .reduce((rest, dir) => rest.replaceAll(dir, 'DIR'), text)
    .replace(/(127\.0\.0\.1|\[::1\]|localhost|0\.0\.0\.0|\*)([: ])(\d+)\b/g, (_, host, sep, port) => {
      return `${host}${sep}${portName(names, port)}`;
    })
    .replace(/unix(?:\(\d+\))?:(\d+)/g, (_, port) => `unix(PID):${portName(names, port)}`)
    .replace(/\.s\.PGSQL\.(\d+)/g, (_, port) => `.s.PGSQL.${portName(names, port)}`)
    .replace(/\b(port[= ]"?)(\d+)/g, (_, word, port) => `${word}${portName(names, port)}`)
    .replace(/\bpid[= ]\d+/gi, 'pid=PID');
}

function maskCell(table: Table, row: (string | null)[], at: number, names: Names): string | null {
  const value = row[at] ?? null;
  const name = table.columns[at]?.name ?? '';
  if (value === null) return null;
  if (VOLATILE_COLUMNS.has(name) || CLOCK_STATISTICS.test(name)) return MASKED;
  if (LINK_COLUMNS.has(name)) return value === '' || value === '0' ? '' : MASKED;
  if (PORT_COLUMNS.has(name)) return portName(names, value);
  // SHOW TOTALS and SHOW CONFIG have one statistic or setting per row
  if (name === 'value' && CLOCK_STATISTICS.test(row[0] ?? '')) return MASKED;
  if (name === 'value' && row[0] === 'listen_port') return portName(names, value);
  return maskText(value, names);
}

/** The item with volatile values replaced. */
export function maskItem(item: Item, names: Names): Item {
  if (typeof item === 'string') return maskText(item, names);
  return {
    columns: item.columns,
    rows: item.rows.map((row) => row.map((_, at) => maskCell(item, row, at, names))),
  };
}

/**
 * A log, or stderr with log lines, as lines with level and text. Socket names are removed, because PgBouncer reuses a
 * pointer once its socket is closed. Other lines are unchanged.
 */
export function maskLog(text: string, names: Names): string[] {
  const lines = text.split('\n').filter((line) => line !== '');
  return lines.map((line) => {
    const plain = line
      .replace(/^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ (?:\S+ )?(?:\[\d+\]|\d+) /, '')
      .replace(/\b([CS])-0x[0-9a-f]+/g, '$1')
      .replace(/\bage=\d+s/g, 'age=Ns')
      .replace(/\b(resolution|file descriptor limit): \d+ \(hard: \d+\)/, '$1: N (hard: N)');
    return maskText(/\bstats: /.test(plain) ? plain.replace(/\d+(\.\d+)?/g, 'N') : plain, names);
  });
}

/** The lines sorted, for logs in which two sockets race. */
export function unordered(lines: readonly string[]): string[] {
  return [...lines].sort();
}
