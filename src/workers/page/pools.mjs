/* The table of pools of the live page. On a narrow screen page.css shows each row as a card. */

import { Spark } from './charts.mjs';
import { element, keyed, setAttribute, setText } from './dom.mjs';
import { duration, name, percent, short, whole } from './format.mjs';

const OTHER = ['sv_active_cancel', 'sv_being_canceled', 'sv_used', 'sv_tested', 'sv_login'];

/** Servers in use and clients that wait for one, for each server that the pool may have. */
function saturation({ mean_active: active, mean_waiting: waiting, pool_size: size }) {
  if (size > 0) return (active + waiting) / size;
  return waiting > 0 ? Number.POSITIVE_INFINITY : 0;
}

const other = (pool) => OTHER.reduce((sum, column) => sum + pool[column], 0);
const some = (format) => (value) => (value === 0 ? '–' : format(value));

/** Columns behind the name, saturation and the small chart: group, heading, heading in a card, tooltip, number, text. */
const COLUMNS = [
  ['clients', 'active', 'clients', 'cl_active: clients linked to a server, or idle', (p) => p.cl_active, whole],
  ['clients', 'waiting', 'waiting', 'cl_waiting: clients that wait for a server', (p) => p.cl_waiting, some(whole)],
  [
    'clients',
    'longest wait',
    'max wait',
    'maxwait: of the first client in the queue',
    (p) => p.maxwait,
    some(duration),
  ],
  ['servers', 'active', 'servers', 'sv_active: servers linked to a client', (p) => p.sv_active, whole],
  ['servers', 'idle', 'idle', 'sv_idle: servers that a client can use at once', (p) => p.sv_idle, whole],
  ['servers', 'other', 'other', `servers in another state: ${OTHER.join(', ')}`, other, some(whole)],
  ['servers', 'pool size', 'pool size', 'pool_size: most servers of the pool', (p) => p.pool_size, whole],
  ['per second', 'queries', 'queries/s', 'queries a second, mean of 10 s', (p) => p.queries, some(short)],
  ['per second', 'xacts', 'xacts/s', 'transactions a second, mean of 10 s', (p) => p.transactions, some(short)],
  ['time, mean of 1 min', 'query', 'query', 'mean time of a query', (p) => p.query_time, some(duration)],
  ['time, mean of 1 min', '95 %', 'query 95 %', '95 % of the queries take less', (p) => p.query_p95, some(duration)],
  ['time, mean of 1 min', 'xact', 'xact', 'mean time of a transaction', (p) => p.xact_time, some(duration)],
  [
    'time, mean of 1 min',
    'wait',
    'wait',
    'mean time that a client waited for a server',
    (p) => p.wait_time,
    some(duration),
  ],
].map(([group, label, brief, title, value, format]) => ({ group, label, brief, title, value, format }));

const SATURATION = {
  label: 'saturation',
  title: '(sv_active + cl_waiting) / pool_size, mean of 10 s',
  value: saturation,
};
const NAME = { label: 'database / user', title: 'sorts by name', value: (pool) => `${pool.database}\0${pool.user}` };

export class PoolTable {
  rows = new Map();
  sort = SATURATION;
  /** -1 = the greatest first */
  order = -1;
  pools = [];
  buttons = new Map();

  constructor(table) {
    this.body = element('tbody');
    table.append(this.head(), this.body);
  }

  head() {
    const groups = [...new Set(COLUMNS.map(({ group }) => group))].map((group) => {
      const span = COLUMNS.filter((column) => column.group === group).length;
      return element('th', { colspan: span, scope: 'colgroup', class: 'group' }, group);
    });
    const first = element('tr', { class: 'groups' }, element('td', { colspan: 3 }), ...groups);
    const second = element(
      'tr',
      {},
      this.heading(NAME, 'name'),
      this.heading(SATURATION, 'saturation'),
      element(
        'th',
        { scope: 'col', class: 'demand', title: 'clients with or waiting for a server; line: pool size' },
        '5 min',
      ),
      ...COLUMNS.map((column, at) => this.heading(column, startsGroup(at) ? 'number starts' : 'number')),
    );
    return element('thead', {}, first, second);
  }

  heading(column, style) {
    const button = element('button', { type: 'button', title: column.title }, column.label);
    const cell = element('th', { scope: 'col', class: style }, button);
    button.addEventListener('click', () => {
      this.order = this.sort === column ? -this.order : column === NAME ? 1 : -1;
      this.sort = column;
      this.draw(this.pools);
    });
    this.buttons.set(column, cell);
    return cell;
  }

  draw(pools) {
    this.pools = pools;
    for (const [column, cell] of this.buttons) {
      const direction = this.order < 0 ? 'descending' : 'ascending';
      setAttribute(cell, 'aria-sort', column === this.sort ? direction : null);
    }
    const { value } = this.sort;
    // equal pools keep the order of the answer, which is by saturation
    const sorted = [...pools].sort((a, b) => compare(value(a), value(b)) * this.order);
    const byKey = new Map();
    for (const pool of sorted) byKey.set(`${pool.database}\0${pool.user}`, pool);
    keyed(this.body, this.rows, [...byKey.keys()], (key) => makeRow(byKey.get(key)));
    for (const [key, node] of this.rows) fillRow(node, byKey.get(key));
  }
}

function startsGroup(at) {
  return COLUMNS[at].group !== COLUMNS[at - 1]?.group;
}

function compare(a, b) {
  if (a === b) return 0;
  return a < b ? -1 : 1;
}

/** The cells of each row, to fill them again. */
const parts = new WeakMap();

function makeRow(pool) {
  const spark = new Spark();
  const used = element('span', { class: 'bar-active' });
  const waiting = element('span', { class: 'bar-waiting' });
  const share = element('span', { class: 'share' });
  const flag = element('span', { class: 'flag' });
  const cells = COLUMNS.map(({ brief }, at) => {
    return element('td', { class: startsGroup(at) ? 'number starts' : 'number', 'data-short': brief });
  });
  const row = element(
    'tr',
    {},
    element(
      'th',
      { scope: 'row', class: 'name' },
      element('span', { class: 'database' }, name(pool.database)),
      element('span', { class: 'user' }, name(pool.user)),
      flag,
    ),
    element('td', { class: 'saturation' }, element('span', { class: 'bar' }, used, waiting), share),
    element('td', { class: 'demand' }, spark.node),
    ...cells,
  );
  setAttribute(row.firstElementChild, 'title', `${name(pool.database)} / ${name(pool.user)}`);
  parts.set(row, { spark, used, waiting, share, flag, cells });
  return row;
}

function fillRow(row, pool) {
  const { spark, used, waiting, share, flag, cells } = parts.get(row);
  const part = saturation(pool);
  // more than all servers: the bar is the demand, and what waits is its last part
  const full = Math.max(pool.pool_size, pool.mean_active + pool.mean_waiting, 1);
  used.style.setProperty('width', `${(100 * pool.mean_active) / full}%`);
  waiting.style.setProperty('width', `${(100 * pool.mean_waiting) / full}%`);
  setText(share, percent(part));
  setText(flag, pool.stopped ?? '');
  spark.draw(pool.demand, pool.pool_size);
  for (const [at, { value, format }] of COLUMNS.entries()) setText(cells[at], format(value(pool)));
  row.classList.toggle('waits', pool.cl_waiting > 0);
  row.classList.toggle('full', part >= 1);
  row.classList.toggle('rests', part === 0 && pool.queries === 0);
}
