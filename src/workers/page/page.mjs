/*
 * The live page: asks for /status.json once a second while it is visible, and draws what has changed. Says so, and since
 * when, if there is no answer, and goes on by itself when there is one again, for example after an online reboot.
 */

import { Chart } from './charts.mjs';
import { byId, element, keyed, setText } from './dom.mjs';
import { age, bytes, clock, duration, moment, name, short, whole } from './format.mjs';
import { mean, rate, Samples } from './history.mjs';
import { PoolTable } from './pools.mjs';

const PERIOD_MS = 1000;
/** An answer that takes longer counts as none. */
const ANSWER_MS = 4000;
/** A shorter interruption, such as that of an online reboot, is not an error. */
const PATIENCE_MS = 3000;
const LINES_SHOWN = 100;

const samples = new Samples();
const pools = new PoolTable(byId('pools'));
const lineNodes = new Map();
const rebootNodes = new Map();
const factNodes = new Map();
let lines = [];
let linesHave = 0;
let assets = '';
/** when an answer came last, and when the process was last heard of, in ms since 1970 as this browser counts */
let answeredAt = 0;
let reportedAt = 0;
let reportTime = 0;
let filter = '';
let timer = 0;
let asking = false;

const charts = [
  new Chart(byId('tile-queries'), {
    title: 'Queries per second',
    lines: [
      { label: 'queries', colour: 'active', value: (v) => rate(v, 'query_count'), format: short },
      { label: 'transactions', colour: 'second', value: (v) => rate(v, 'xact_count'), format: short },
      { label: 'logins', colour: 'third', value: (v) => rate(v, 'client_login_count'), format: short },
    ],
  }),
  new Chart(byId('tile-time'), {
    title: 'Mean query time',
    logarithmic: true,
    lines: [
      { label: 'query', colour: 'active', value: (v) => mean(v, 'query_time', 'query_count'), format: duration },
      { label: 'transaction', colour: 'second', value: (v) => mean(v, 'xact_time', 'xact_count'), format: duration },
      {
        label: 'wait',
        colour: 'waiting',
        value: (v) => mean(v, 'wait_time', 'server_assignment_count'),
        format: duration,
      },
    ],
  }),
  new Chart(byId('tile-wait'), {
    title: 'Waiting clients',
    stacked: true,
    least: 5,
    lines: [
      { label: 'waiting', colour: 'waiting', value: (v) => v.cl_waiting, format: short },
      { label: 'longest wait', colour: 'none', value: (v) => v.maxwait, format: duration, hidden: true },
      { label: 'active', colour: 'none', value: (v) => v.cl_active, format: short, hidden: true },
    ],
  }),
  new Chart(byId('tile-servers'), {
    title: 'Active servers',
    stacked: true,
    least: 5,
    lines: [
      { label: 'active', colour: 'active', value: (v) => v.sv_active, format: short },
      { label: 'used', colour: 'third', value: (v) => v.sv_used, format: short, rare: true },
      { label: 'tested', colour: 'fourth', value: (v) => v.sv_tested, format: short, rare: true },
      { label: 'login', colour: 'second', value: (v) => v.sv_login, format: short, rare: true },
      {
        label: 'cancel',
        colour: 'bad',
        value: (v) => v.sv_active_cancel + v.sv_being_canceled,
        format: short,
        rare: true,
      },
      { label: 'idle', colour: 'idle', value: (v) => v.sv_idle, format: short },
    ],
  }),
];

function pointAt(at) {
  for (const chart of charts) chart.point(at);
}
for (const chart of charts) chart.onPoint(pointAt);

/* ---- drawing ---- */

function setState(text, kind, title = '') {
  const node = byId('state');
  setText(node, text);
  node.className = `pill ${kind}`;
  node.title = title;
  document.title = kind === 'good' ? 'tsbouncer' : `${text} · tsbouncer`;
}

function setBanner(text) {
  const node = byId('banner');
  setText(node, text);
  node.hidden = text === '';
}

/** Percentiles of the last five minutes. */
function parts(what, [half, most, nearly] = []) {
  if (half === undefined) return '';
  // a line may break between the parts only
  const shown = [`50 % ${duration(half)}`, `95 % ${duration(most)}`, `99 % ${duration(nearly)}`];
  return `${what} ${shown.map((part) => part.replaceAll(' ', '\u00a0')).join(', ')}`;
}

function drawTiles(answer) {
  for (const chart of charts) chart.draw(samples, answer.wall / 1000);
  const { last } = samples;
  if (last === null) return;
  const recent = samples.sum(5);
  const per = (value, count) => (count > 0 ? value / count : Number.NaN);
  setText(charts[0].value, short(per(recent.query_count, recent.seconds)));
  setText(charts[1].value, duration(per(recent.query_time, recent.query_count)));
  setText(charts[2].value, whole(last.values.cl_waiting));
  setText(charts[3].value, whole(last.values.sv_active));
  setText(charts[1].more, parts('query', answer.percentiles.query));
  setText(charts[2].more, parts('wait', answer.percentiles.client_wait));
  byId('tile-wait').classList.toggle('alarm', last.values.cl_waiting > 0);
}

function drawFacts(answer) {
  const recent = samples.sum(5);
  const seconds = Math.max(recent.seconds ?? 0, 0.001);
  const facts = {
    Clients: `${whole(answer.clients)} of ${whole(answer.maxClientConn)}`,
    'In login': whole(answer.loginClients),
    Pools: whole(answer.pools.count),
    'From clients': bytes((recent.client_bytes ?? 0) / seconds),
    'From servers': bytes((recent.server_bytes ?? 0) / seconds),
  };
  const stopped = answer.databases.map(
    ({ name: database, paused }) => `${name(database)} ${paused ? 'paused' : 'disabled'}`,
  );
  if (stopped.length > 0) facts.Databases = stopped.join(', ');
  keyed(byId('facts'), factNodes, Object.keys(facts), (key) => {
    return element('div', {}, element('dt', {}, key), element('dd'));
  });
  for (const [key, node] of factNodes) setText(node.lastElementChild, facts[key]);
}

function drawPools(answer) {
  const { columns, rows, count, found } = answer.pools;
  const stopped = new Map(answer.databases.map((db) => [db.name, db.paused ? 'paused' : 'disabled']));
  const list = rows.map((row) => {
    const pool = Object.fromEntries(columns.map((column, at) => [column, row[at]]));
    return { ...pool, stopped: stopped.get(pool.database) };
  });
  pools.draw(list);
  byId('pools').hidden = list.length === 0;
  const empty = byId('pools-empty');
  if (found === 0) setText(empty, `None of ${whole(count)} pools has this in the name of its database or user.`);
  else setText(empty, 'No client has logged in yet. Its database and user become a pool here.');
  // the console has a pool of its own from the beginning
  empty.hidden = found > 0 && (filter !== '' || list.some(({ database }) => database !== 'pgbouncer'));
  const most = list.length < found ? `the ${whole(list.length)} most saturated of ${whole(found)}` : whole(found);
  setText(byId('pools-count'), filter === '' ? most : `${most} found`);
}

function drawLines(answer) {
  for (const line of answer.lines) lines.push({ ...line, key: `${answer.pid}:${line.id}` });
  lines = lines.slice(-LINES_SHOWN);
  linesHave = answer.linesEver;
  const shown = [...lines].reverse();
  const byKey = new Map(shown.map((line) => [line.key, line]));
  keyed(byId('lines'), lineNodes, [...byKey.keys()], (key) => {
    const { at, level, text } = byKey.get(key);
    return element(
      'li',
      { class: level === 'WARNING' ? 'warning' : 'error' },
      element('time', {}, moment(at, answer.wall)),
      element('b', {}, level),
      element('span', {}, name(text)),
    );
  });
  byId('lines-empty').hidden = shown.length > 0;
  setText(byId('lines-count'), answer.linesLeftOut > 0 ? `${whole(answer.linesLeftOut)} more are only in the log` : '');
}

function drawReboots(answer) {
  const shown = [...answer.reboots].reverse();
  const byKey = new Map(shown.map((reboot) => [`${reboot.at}:${reboot.to}`, reboot]));
  keyed(byId('reboots'), rebootNodes, [...byKey.keys()], (key) => {
    const { at, from, to, version, outcome } = byKey.get(key);
    const processes = from === 0 ? `process ${to}` : `process ${from} → ${to}`;
    return element(
      'li',
      {},
      element('time', {}, moment(at, answer.wall)),
      element('span', {}, `${processes}, version ${name(version)}: ${name(outcome)}`),
    );
  });
  byId('reboots-empty').hidden = shown.length > 0;
}

function draw(answer) {
  if (assets !== '' && assets !== answer.assets) {
    // another version answers: its page understands it
    location.reload();
    return;
  }
  assets = answer.assets;
  samples.add(answer);
  setText(byId('process'), `${answer.version} · process ${answer.pid} · up ${age(answer.up)}`);
  drawTiles(answer);
  drawFacts(answer);
  drawPools(answer);
  drawLines(answer);
  drawReboots(answer);
  const old = Date.now() - reportedAt;
  const rebooted = samples.changes.at(-1);
  if (old > PATIENCE_MS) {
    setState('no report', 'bad');
    setBanner(`The process answers, but its event loop has reported nothing since ${clock(reportedAt)} (${age(old)}).`);
  } else {
    if (answer.notReady !== '') setState(answer.notReady, 'warn');
    else if (rebooted !== undefined && answer.wall / 1000 - rebooted < 60) {
      setState(`rebooted ${clock(rebooted * 1000)}`, 'good', 'another process has taken over all connections');
    } else setState('running', 'good');
    setBanner('');
  }
}

/* ---- asking ---- */

/** The process answers 503. */
function stuck() {
  answeredAt = Date.now();
  setState('no report', 'bad');
  const since = reportedAt === 0 ? '' : ` since ${clock(reportedAt)} (${age(answeredAt - reportedAt)})`;
  setBanner(`The process answers, but its event loop reports nothing${since}.`);
}

function failed(reason) {
  const silent = Date.now() - answeredAt;
  if (answeredAt !== 0 && silent < PATIENCE_MS) {
    setState('reconnecting', 'warn');
    return;
  }
  setState('not reachable', 'bad');
  const since = `No answer since ${clock(answeredAt)} (${age(silent)}); below is what was known then. `;
  setBanner(`${reason}. ${answeredAt === 0 ? '' : since}The page asks again every second.`);
}

/** Asks once. @returns the answer, or null after telling why there is none */
async function answerOf(question) {
  try {
    const response = await fetch(`status.json?${question}`, {
      cache: 'no-store',
      signal: AbortSignal.timeout(ANSWER_MS),
    });
    if (response.ok) return await response.json();
    if (response.status === 503) stuck();
    else failed(`The answer is ${response.status} ${response.statusText}`);
  } catch {
    failed('The pooler cannot be reached');
  }
  return null;
}

async function ask() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  const began = performance.now();
  const question = new URLSearchParams({ process: samples.process, since: samples.count, lines: linesHave, filter });
  const answer = await answerOf(question);
  asking = false;
  const rest = Math.max(100, PERIOD_MS - (performance.now() - began));
  if (document.visibilityState === 'visible') timer = setTimeout(ask, rest);
  setText(byId('clock'), clock(Date.now()));
  if (answer === null) return;
  answeredAt = Date.now();
  if (answer.time !== reportTime) reportedAt = answeredAt;
  reportTime = answer.time;
  draw(answer);
}

document.addEventListener('visibilitychange', () => {
  clearTimeout(timer);
  if (document.visibilityState === 'visible') ask();
});
byId('filter').addEventListener('input', (event) => {
  filter = event.target.value.trim();
  ask();
});
ask();
