/*
 * A wall clock that a test can set: a library preloaded into a pooler shifts CLOCK_REALTIME and its older forms by the
 * number of seconds in a file. The monotonic clock is unchanged.
 */

import { openSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { giveTo } from '../../tools/unprivileged';
import { runSync } from './limits';
import { tempDir, user } from './machine';

const SOURCE = `
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long *shift() {
  static const volatile long *place = nullptr;
  static const long none = 0;
  if (place != nullptr) return place;
  const char *path = getenv("TEST_CLOCK_SHIFT");
  const int fd = path != nullptr ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  void *map = fd >= 0 ? mmap(nullptr, sizeof(long), PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
  if (fd >= 0) close(fd);
  place = map == MAP_FAILED ? &none : static_cast<const volatile long *>(map);
  return place;
}

extern "C" int clock_gettime(clockid_t clock, timespec *now) noexcept {
  using Real = int (*)(clockid_t, timespec *);
  static const Real real = reinterpret_cast<Real>(dlsym(RTLD_NEXT, "clock_gettime"));
  const int result = real(clock, now);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *shift();
  return result;
}

extern "C" int gettimeofday(timeval *__restrict now, void *__restrict) noexcept {
  timespec fine;
  const int result = clock_gettime(CLOCK_REALTIME, &fine);
  now->tv_sec = fine.tv_sec;
  now->tv_usec = fine.tv_nsec / 1000;
  return result;
}

extern "C" time_t time(time_t *now) noexcept {
  timespec fine;
  clock_gettime(CLOCK_REALTIME, &fine);
  if (now != nullptr) *now = fine.tv_sec;
  return fine.tv_sec;
}
`;

let library = '';

/** On a busy machine. */
const COMPILE_MS_MAX = 60_000;

/** Compiles the library once per test process, with the compiler that builds the addon. */
function buildLibrary(): string {
  if (library !== '') return library;
  const dir = tempDir('clock');
  const source = join(dir, 'clock.cc');
  library = join(dir, 'clock.so');
  writeFileSync(source, SOURCE);
  const args = ['-shared', '-fPIC', '-O1', '-o', library, source, '-ldl'];
  const { status, error, stderr } = runSync(process.env.CXX ?? 'g++', args, { timeout: COMPILE_MS_MAX });
  if (status !== 0) throw new Error(`the clock library cannot be built: ${error?.message ?? stderr}`);
  giveTo(user, dir);
  return library;
}

let clocks = 0;

export class WallClock {
  private readonly fd: number;
  /** environment of processes that use this clock */
  readonly env: NodeJS.ProcessEnv;

  constructor() {
    const preload = buildLibrary();
    const file = `${preload}.${clocks++}`;
    this.fd = openSync(file, 'w', 0o644);
    this.set(0);
    const others = process.env.LD_PRELOAD;
    this.env = {
      LD_PRELOAD: others === undefined || others === '' ? preload : `${others}:${preload}`,
      TEST_CLOCK_SHIFT: file,
    };
  }

  /** Sets the wall clock that many seconds ahead of the real clock. */
  set(seconds: number): void {
    const bytes = Buffer.alloc(8);
    bytes.writeBigInt64LE(BigInt(seconds));
    writeSync(this.fd, bytes, 0, bytes.length, 0);
  }
}
