/*
 * How long a wait lasts: what becomes of a send ends it although nothing else happens. A failure that cannot be reported yet
 * does not.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "world.h"

using namespace tsb;

namespace {

constexpr int kWaitMs = 10000;

/** Reads so many bytes after a while, and closes the descriptor. */
struct LateReader {
  int fd;
  size_t left;
  pthread_t thread;

  LateReader(int fd, size_t length) : fd(fd), left(length) { CHECK_EQUAL(pthread_create(&thread, nullptr, run, this), 0); }
  ~LateReader() {
    pthread_join(thread, nullptr);
    close(fd);
  }

  static void *run(void *data) {
    LateReader *reader = static_cast<LateReader *>(data);
    usleep(50000);
    while (reader->left > 0) {
      const size_t n = get(reader->fd).size();
      reader->left -= n;
      if (n == 0) usleep(100);
    }
    return nullptr;
  }
};

/** Waits, with much time in each turn, for a DRAIN record, which has to come soon. Returns its result. */
int drained(World &world, int handle) {
  const double end = monotonicUsec() + kWaitMs * 1e3 / 2;
  while (monotonicUsec() < end)
    for (const Event &event : world.turn(kWaitMs))
      if (event.kind == kDrain && event.handle == handle && monotonicUsec() < end) return event.result;
  check::fail(__FILE__, __LINE__, "no DRAIN record in time");
}

}  // namespace

TABLE_TEST(short_send, "what a socket does not take is sent as soon as it takes more, although nothing else happens") {
  constexpr size_t kLength = 1 << 20;
  World world(ops);
  int peer;
  const int handle = world.openReading(&peer);
  world.quiet();
  memset(world.turns.arena, 'a', kLength);
  LateReader reader(peer, kLength);
  CHECK(streamSend(world.streams, handle, world.turns.arena, kLength, Origin::kArena) >= 0);
  CHECK_EQUAL(drained(world, handle), 0);
}

TABLE_TEST(small_send, "a small send that finds the socket full is sent as soon as it takes more, although nothing else happens") {
  World world(ops);
  int peer;
  const int handle = world.openReading(&peer);
  world.quiet();
  const int fd = streamFd(world.streams, handle);
  size_t filled = 0;
  for (const size_t length : {size_t{1 << 20}, size_t{1}})
    while (const size_t n = put(fd, std::string(length, 'f'))) filled += n;
  LateReader reader(peer, filled + 5);
  CHECK(world.send(handle, "small") >= 0);
  CHECK_EQUAL(drained(world, handle), 0);
}

TABLE_TEST(failed_send, "a send that fails is reported, although nothing else happens") {
  World world(ops);
  int peer;
  const int handle = world.open(&peer);
  world.quiet();
  close(peer);
  CHECK_EQUAL(world.send(handle, "lost"), 0);
  CHECK_EQUAL(drained(world, handle), -EPIPE);
}

TABLE_TEST(unheard_failure, "a failure that cannot be reported yet lets the loop wait, and is the next record") {
  constexpr int kTurns = 4, kTurnMs = 50;
  World world(ops, 1024);
  int peer;
  const int handle = world.openReading(&peer);
  put(peer, pattern(100000, 12));
  world.until(kRecv, handle);
  // more bytes are due
  streamRecvStop(world.streams, handle);
  streamFailed(world.streams->all[static_cast<size_t>(handle)], -EIO);
  const double before = monotonicUsec();
  for (int i = 0; i < kTurns; i++) CHECK_EQUAL(world.turn(kTurnMs).size(), 0u);
  if (ops != &kLoopEager) CHECK(monotonicUsec() - before > (kTurns - 2) * kTurnMs * 1e3);
  streamRecvStart(world.streams, handle);
  CHECK_EQUAL(world.until(kRecv, handle).result, -EIO);
  world.quiet();
  close(peer);
}

TABLE_TEST(nothing_behind, "nothing is sent behind bytes that are lost, also when the connection is closed") {
  World world(ops);
  int peer;
  const int handle = world.openReading(&peer);
  CHECK_EQUAL(world.send(handle, "first"), 0);
  world.quiet();
  CHECK_EQUAL(get(peer), std::string("first"));
  // as if the kernel had no memory
  streamSendFailed(world.streams->all[static_cast<size_t>(handle)], -ENOBUFS);
  CHECK_EQUAL(world.send(handle, "behind"), -EPIPE);
  CHECK_EQUAL(drained(world, handle), -ENOBUFS);
  CHECK_EQUAL(world.send(handle, "behind"), -EPIPE);
  world.close(handle);
  world.turn();
  CHECK_EQUAL(get(peer), std::string());
  close(peer);
}
