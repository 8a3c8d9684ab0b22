/*
 * The wall clock is set back or forward by an hour while the pooler runs: every timeout strikes all the same, and the online
 * reboot works. A preloaded clock_gettime() plays the step, for CLOCK_REALTIME only.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmodSync, closeSync, openSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { after, before } from 'node:test';
import { Bouncer, cstring, it, PgCluster, tempDir } from './harness';

const CLOCK_SOURCE = `
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long *offset;
static long none;

static void find(void) {
  const char *file = getenv("TEST_CLOCK_FILE");
  int fd = file ? open(file, O_RDONLY | O_CLOEXEC) : -1;
  void *page = fd < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
  if (fd >= 0) close(fd);
  offset = page == MAP_FAILED ? &none : (volatile long *)page;
}

extern "C" int clock_gettime(clockid_t clock, struct timespec *now) noexcept {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  if (!offset) find();
  int result = real(clock, now);
  if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += *offset;
  return result;
}

extern "C" int gettimeofday(struct timeval *now, void *) noexcept {
  struct timespec fine;
  clock_gettime(CLOCK_REALTIME, &fine);
  now->tv_sec = fine.tv_sec;
  now->tv_usec = fine.tv_nsec / 1000;
  return 0;
}

extern "C" time_t time(time_t *into) noexcept {
  struct timespec fine;
  clock_gettime(CLOCK_REALTIME, &fine);
  if (into) *into = fine.tv_sec;
  return fine.tv_sec;
}
`;

const HOUR = 3600;
const SETTINGS = {
  auth_type: 'trust',
  pool_mode: 'transaction',
  default_pool_size: 1,
  client_login_timeout: 1,
  query_wait_timeout: 1,
  idle_transaction_timeout: 2,
};

let pg: PgCluster;
let library = '';

before(async () => {
  pg = await PgCluster.start();
  const dir = tempDir('clock');
  library = join(dir, 'clock.so');
  const source = join(dir, 'clock.cc');
  writeFileSync(source, CLOCK_SOURCE);
  const built = spawnSync('g++', ['-shared', '-fPIC', '-O1', '-o', library, source, '-ldl'], { encoding: 'utf8' });
  assert.equal(built.status, 0, built.stderr);
  chmodSync(library, 0o755);
});
after(() => pg.stop());

/** A file that holds the step in seconds, and the environment that makes a process see it. */
function newClock(): { env: NodeJS.ProcessEnv; step: (seconds: number) => void } {
  const file = join(tempDir('step'), 'seconds');
  writeFileSync(file, Buffer.alloc(8), { mode: 0o644 });
  const step = (seconds: number): void => {
    const value = Buffer.alloc(8);
    value.writeBigInt64LE(BigInt(seconds));
    const fd = openSync(file, 'r+');
    writeSync(fd, value, 0, 8, 0);
    closeSync(fd);
  };
  return { env: { LD_PRELOAD: library, TEST_CLOCK_FILE: file }, step };
}

for (const [name, seconds] of [
  ['back', -HOUR],
  ['forward', HOUR],
] as const) {
  it(`timeouts strike after the wall clock is set ${name} by an hour`, async () => {
    const clock = newClock();
    const pooler = await Bouncer.start({ cluster: pg, settings: SETTINGS, env: clock.env });
    const holder = await pooler.raw();
    await holder.login();
    await holder.query('BEGIN');
    clock.step(seconds);
    const silent = await pooler.raw();
    const waiting = await pooler.raw();
    await waiting.login();
    await waiting.sendMessage('Q', cstring('SELECT 1'));
    const refused = await waiting.until('E');
    assert.match(refused.at(-1)?.body.toString('latin1') ?? '', /query_wait_timeout/);
    const tooLate = await silent.until('E');
    assert.match(tooLate.at(-1)?.body.toString('latin1') ?? '', /client_login_timeout/);
    const ended = await holder.until('E');
    assert.match(ended.at(-1)?.body.toString('latin1') ?? '', /idle transaction timeout/);
    // the clock did not run away with anything else: the pooler serves
    assert.equal((await pooler.sql('SELECT 1 AS one')).rows[0].one, 1);
    await Promise.all([holder, silent, waiting].map((client) => client.destroy()));
    await pooler.stop();
  });
}

it('the log and the console show the wall clock, as it was set', async () => {
  const clock = newClock();
  const pooler = await Bouncer.start({ cluster: pg, settings: SETTINGS, env: clock.env });
  clock.step(HOUR);
  const client = await pooler.raw();
  await client.login();
  const [row] = await pooler.admin('SHOW CLIENTS');
  const shown = Date.parse(`${String(row?.connect_time).slice(0, 19).replace(' ', 'T')}Z`);
  // whatever the time zone is, it is a whole number of quarter hours
  const quarter = 15 * 60_000;
  const away = Math.abs(shown - (Date.now() + HOUR * 1000)) % quarter;
  assert.ok(Math.min(away, quarter - away) < 60_000, String(row?.connect_time));
  assert.ok(Math.abs(shown - Date.now()) < 24 * HOUR * 1000, String(row?.connect_time));
  await client.destroy();
  await pooler.stop();
});
