/*
 * The benchmark as an instrument: its arithmetic, its reading of limits and settings, and a short run of the load generator's
 * rows. What the figures are is not tested.
 */
import { strict as assert } from 'node:assert';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { chartOf } from '../../bench/chart';
import { variantSettings } from '../../bench/contenders';
import { cpuBetween } from '../../bench/cpu';
import { allowedBy, hardLimit } from '../../bench/descriptors';
import { addRow, isMet, median, note, OFF, ON, OURS, ratioAim, ratioOf, roundRatios, THEIRS } from '../../bench/rows';
import { installed, PROJECT_DIR, runSync, tempDir } from '../harness';
import { it } from '../harness/machine';
import { itUnless, noProgram } from '../harness/needs';

const RUN_MS_MAX = 110_000;

it('a median is the middle, or the mean of the two in the middle', () => {
  assert.equal(median([3, 1, 2]), 2);
  assert.equal(median([4, 1, 2, 3]), 2.5);
  assert.ok(Number.isNaN(median([])));
});

it('a ratio is that of the medians, and an aim is a bound from above or from below', () => {
  const cost = addRow('cost', 'us', 1, { aims: ratioAim(0.8) });
  const speed = addRow('speed', '/s', 0, { better: 'more', aims: ratioAim(1.25) });
  for (const value of [7, 8, 30]) note(cost, { name: OURS }, value);
  for (const value of [10, 9, 11]) note(cost, { name: THEIRS }, value);
  note(speed, { name: OURS }, 120);
  assert.equal(ratioOf(cost, OURS), 0.8);
  assert.equal(isMet(cost, ratioAim(0.8)[0] as never), true);
  assert.equal(isMet(cost, ratioAim(0.79)[0] as never), false);
  assert.equal(isMet(speed, ratioAim(1.25)[0] as never), null);
  note(speed, { name: THEIRS }, 100);
  assert.equal(isMet(speed, ratioAim(1.25)[0] as never), false);
  assert.equal(isMet(speed, ratioAim(1.2)[0] as never), true);
  // only figures with an aim of which less is better have a bar
  const plain = addRow('plain', 'us', 1);
  note(plain, { name: OURS }, 1);
  note(plain, { name: THEIRS }, 1);
  const chart = chartOf([cost, speed, plain], 'A & B');
  assert.match(chart, />cost</);
  assert.doesNotMatch(chart, />speed</);
  assert.doesNotMatch(chart, />plain</);
  assert.match(chart, />A &amp; B</);
});

it('the cost of a setting is the ratio of the rounds that were measured in turns', () => {
  const cost = addRow('cost', 'us', 1, { base: OFF });
  for (const value of [10, 20]) note(cost, { name: OFF }, value);
  for (const value of [11, 21, 99]) note(cost, { name: ON }, value);
  assert.deepEqual(roundRatios(cost, ON), [1.1, 1.05]);
  assert.equal(ratioOf(cost, ON), 21 / 15);
});

it('a variant is a list of settings, whose values may have commas', () => {
  assert.deepEqual(variantSettings('loop_backend=uring, io_threads=2'), { loop_backend: 'uring', io_threads: '2' });
  const list = { ignore_startup_parameters: 'a,b', server_fast_close: '1' };
  assert.deepEqual(variantSettings('ignore_startup_parameters=a,b,server_fast_close=1'), list);
  assert.throws(() => variantSettings('epoll'), /SETTING=VALUE, not epoll/);
  assert.throws(() => variantSettings('=epoll'), /SETTING=VALUE, not =epoll/);
});

it('a limit of descriptors reduces the number of connections', () => {
  const limits =
    'Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 4096                 files\n';
  assert.equal(hardLimit(limits), 4096);
  assert.equal(
    hardLimit('Max open files            1024                 unlimited            files\n'),
    Number.POSITIVE_INFINITY,
  );
  assert.equal(allowedBy(4096, 10_000), 3796);
  assert.equal(allowedBy(20_000, 10_000), 10_000);
  assert.equal(allowedBy(4096, 5000, 2), 1898);
  assert.equal(allowedBy(64, 10_000), 1);
});

it('the time of each thread counts from its first sample', () => {
  const thread = (name: string, usec: number, ticks: number) => ({
    name,
    ns: usec * 1000,
    userTicks: ticks,
    systemTicks: ticks,
  });
  const before = new Map([[10, thread('node', 500, 1)]]);
  const after = new Map([
    [10, thread('node', 900, 3)],
    [11, thread('hand', 60, 0)],
    [12, thread('hand', 40, 0)],
  ]);
  const use = cpuBetween(10, before, after);
  assert.equal(use.main, 400);
  assert.equal(use.others, 100);
  assert.deepEqual(use.threads, { hand: 100 });
  assert.equal(use.user, 250);
});

const program = join(PROJECT_DIR, 'dist-test', 'bench', 'bench.js');

/** @returns what it prints, and its JSON */
function runBench(args: string[]) {
  const json = join(tempDir('bench-json'), 'figures.json');
  const { status, stdout, stderr } = runSync(process.execPath, [program, '--quick', ...args, '--json', json], {
    timeout: RUN_MS_MAX,
  });
  assert.equal(status, 0, stderr);
  return { stdout, report: JSON.parse(readFileSync(json, 'latin1')) };
}

it('a command that starts another process is refused, because the figures would be those of a shell', () => {
  const { node, mainJs } = installed();
  const script = join(tempDir('wrapper'), 'wrapper.sh');
  writeFileSync(script, `#!/bin/sh\n'${node}' '${mainJs}' "$@"\n`, { mode: 0o755 });
  const env = { ...process.env, BENCH_ALSO: `wrapped=${script}` };
  const args = [program, '--quick', '--only', 'no figure'];
  const { status, stderr } = runSync(process.execPath, args, { env, timeout: RUN_MS_MAX });
  assert.equal(status, 1);
  assert.match(stderr, /^wrapped: the figures are of one process, but this command starts another: use exec$/m);
});

itUnless(noProgram('g++'))('what settings cost is measured without and with them', async () => {
  const names = ['dirty_session=log: 64 clients', 'proxy_protocol_networks=127.0.0.0/8: reconnecting'];
  const { stdout, report } = runBench(['--settings', ...names.flatMap((name) => ['--only', name])]);
  assert.deepEqual(
    report.figures.map(({ name }: { name: string }) => name),
    names,
  );
  for (const { name, rounds, roundRatios: ratios } of report.figures) {
    assert.ok(stdout.includes(`\n${name} `), name);
    assert.ok(rounds.off[0] > 0 && rounds.on[0] > 0, name);
    assert.deepEqual(ratios.on, [rounds.on[0] / rounds.off[0]]);
  }
});

itUnless(noProgram('g++') ?? noProgram('pgbench'))(
  'a short run writes every figure, its rounds and its aims',
  async () => {
    const args = ['--only', 'pool 40, simple, 500', '--variant', 'loop_backend=epoll'];
    const { stdout, report } = runBench(args);
    assert.match(stdout, /^pool 40, simple, 500 clients: p99 /m);
    for (const name of ['p50', 'p99', 'transactions/s', 'CPU per transaction', 'CPU per transaction, main thread']) {
      const row = report.figures.find(
        (each: { name: string }) => each.name === `pool 40, simple, 500 clients: ${name}`,
      );
      assert.equal(row?.rounds.tsbouncer.length, 1, name);
      assert.ok(row.medians['tsbouncer loop_backend=epoll'] > 0, name);
    }
  },
);
