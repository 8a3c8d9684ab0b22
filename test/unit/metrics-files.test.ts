/*
 * The files about metrics: the dashboard, the alert rules and docs/metrics.md name only metrics that exist, and Prometheus's
 * own programs accept the rules and /metrics.
 */

import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parse } from 'yaml';
import { addDatabase, removeDatabase } from '../../src/core/pool/database';
import { getPool, removePool } from '../../src/core/pool/pool';
import { observe, Timing } from '../../src/core/pool/timings';
import { findOrAddGlobalUser } from '../../src/core/pool/user';
import {
  beginMetricsReports,
  endMetricsReports,
  metricsLayout,
  nextMetricsReport,
} from '../../src/core/report/metrics-report';
import { MetricsState } from '../../src/workers/metrics-state';
import { metricsText } from '../../src/workers/metrics-text';
import { toDefaults } from '../harness/config-fixtures';
import { describe } from '../harness/limits';
import { it, run, tempDir } from '../harness/machine';
import { samples } from '../harness/metrics';
import { itUnless, noProgram } from '../harness/needs';

const ROOT = join(__dirname, '..', '..', '..');
const RULES = join(ROOT, 'etc', 'grafana', 'tsbouncer-alerts.yml');
const DASHBOARD = join(ROOT, 'etc', 'grafana', 'tsbouncer-dashboard.json');

/** /metrics with one pool, in which everything was timed. */
function everything(): string {
  toDefaults();
  beginMetricsReports();
  const pool = getPool(addDatabase('shop'), findOrAddGlobalUser('joe').credentials);
  for (let timing = 0; timing < Timing.SIZE; timing++) observe(pool, timing, 1000);
  const state = new MetricsState(metricsLayout);
  const report = nextMetricsReport();
  state.hear(report);
  const text = metricsText(state, report, false);
  endMetricsReports();
  removePool(pool);
  removeDatabase(pool.db);
  return text;
}

const text = everything();
/** The names that a query can use: of samples, and of families whose samples only a loop brings. */
const names = new Set([
  ...[...samples(text, false).keys()].map((key) => key.replace(/\{.*/, '')),
  ...[...text.matchAll(/^# TYPE (\S+) counter$/gm)].map(([, name]) => name as string),
]);
const families = [...text.matchAll(/^# TYPE (\S+) /gm)].map(([, name]) => name as string);

/** Checks a query of Prometheus as far as that is possible without its parser. */
function checkQuery(query: string): void {
  const code = query.replace(/"(?:\\.|[^"\\])*"/g, '""');
  const open: string[] = [];
  for (const char of code.replace(/[^()[\]{}]/g, '')) {
    if ('([{'.includes(char)) open.push(char);
    else assert.equal(open.pop(), '([{'[')]}'.indexOf(char)], query);
  }
  assert.deepEqual(open, [], query);
  const used = code.match(/\b(?:pgbouncer|tsbouncer|process)_[a-z_]+\b/g) ?? [];
  assert.ok(used.length > 0 || /\bup\{/.test(code), query);
  for (const name of used) assert.ok(names.has(name), `${name} does not exist: ${query}`);
}

interface Panel {
  type: string;
  title: string;
  gridPos: { x: number; y: number; w: number; h: number };
  targets?: { expr: string }[];
}

interface Rule {
  alert: string;
  expr: string;
  annotations: { summary: string };
}

describe('etc/grafana', () => {
  it('the dashboard asks for metrics that exist', () => {
    const { panels, templating } = JSON.parse(readFileSync(DASHBOARD, 'utf8')) as {
      panels: Panel[];
      templating: { list: { query: string; type: string }[] };
    };
    for (const { type, title, targets = [], gridPos } of panels) {
      assert.ok(gridPos.x + gridPos.w <= 24, title);
      assert.ok(type === 'row' || targets.length > 0, title);
      for (const { expr } of targets) checkQuery(expr);
    }
    for (const { query, type } of templating.list) if (type === 'query') checkQuery(query);
  });

  it('the alerts ask for metrics that exist', () => {
    const { groups } = parse(readFileSync(RULES, 'utf8')) as { groups: { rules: Rule[] }[] };
    const rules = groups.flatMap((group) => group.rules);
    assert.equal(new Set(rules.map(({ alert }) => alert)).size, rules.length);
    for (const { expr, annotations } of rules) {
      checkQuery(expr);
      assert.ok(annotations.summary.length > 0);
    }
  });
});

describe('docs/metrics.md', () => {
  it('lists every metric, and no other', () => {
    const page = readFileSync(join(ROOT, 'docs', 'metrics.md'), 'utf8');
    const listed = [...page.matchAll(/^\| `([a-z_]+)` \|/gm)].map(([, name]) => name as string);
    assert.deepEqual([...listed].sort(), [...families].sort());
  });
});

describe('promtool', () => {
  const test = itUnless(noProgram('promtool'));
  const promtool = (args: string[], input = '') => run('promtool', ['check', ...args], { input });

  test('accepts /metrics without a complaint', async () => {
    const { code, stdout, stderr } = await promtool(['metrics'], text);
    assert.deepEqual([code, stdout, stderr], [0, '', '']);
  });

  test('accepts the alerts, and every query of the dashboard', async () => {
    const rules = await promtool(['rules', RULES]);
    assert.equal(rules.code, 0, rules.stdout + rules.stderr);
    const { panels } = JSON.parse(readFileSync(DASHBOARD, 'utf8')) as { panels: Panel[] };
    const queries = panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr));
    const records = queries.map((expr, i) => ({
      record: `query:${i}`,
      expr: expr.replaceAll('$__rate_interval', '5m').replaceAll('$__all', '.*'),
    }));
    const file = join(tempDir('rules'), 'rules.yml');
    // JSON is YAML
    writeFileSync(file, JSON.stringify({ groups: [{ name: 'panels', rules: records }] }), { mode: 0o644 });
    const all = await promtool(['rules', file]);
    assert.equal(all.code, 0, all.stdout + all.stderr);
    assert.match(all.stdout, new RegExp(`${queries.length} rules found`));
  });
});
