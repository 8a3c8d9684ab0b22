/* Descriptors that move to other handles, as in a handover, over each backend: no byte is lost, doubled or out of order. */
#include <unistd.h>

#include <random>

#include "check.h"
#include "world.h"

using namespace tsb;

/** Bytes both ways between a handle and its peer, and how far they have come. */
struct Talk {
  int handle;
  int peer;
  std::string in;
  size_t put;
  size_t got;
  std::string out;
  size_t sent;
  size_t arrived;
};

static Talk newTalk(World &world, unsigned seed) {
  Talk talk = {0, 0, pattern(300000, seed), 0, 0, pattern(300000, seed + 100), 0, 0};
  talk.handle = world.openReading(&talk.peer);
  return talk;
}

static bool over(const Talk &talk) { return talk.got == talk.in.size() && talk.arrived == talk.out.size(); }

static void step(World &world, Talk &talk, std::mt19937 &random) {
  talk.put += put(talk.peer, talk.in.substr(talk.put, random() % 20000));
  if (streamUnsent(world.streams, talk.handle) < 100000) {
    const std::string part = talk.out.substr(talk.sent, random() % 20000);
    CHECK(world.send(talk.handle, part) >= 0);
    talk.sent += part.size();
  }
  if (random() % 3 == 0) {
    const std::string part = get(talk.peer);
    CHECK(talk.out.compare(talk.arrived, part.size(), part) == 0);
    talk.arrived += part.size();
  }
  if (random() % 4 == 0) streamRecvLimit(world.streams, talk.handle, static_cast<int>(random() % 3000));
  if (random() % 5 == 0) streamRecvStop(world.streams, talk.handle);
  if (random() % 3 == 0) streamRecvStart(world.streams, talk.handle);
}

static void receive(World &world, std::vector<Talk> &talks, std::mt19937 &random) {
  for (const Event &event : world.turn()) {
    if (event.kind != kRecv) continue;
    CHECK(event.result > 0);
    for (Talk &talk : talks) {
      if (talk.handle != event.handle) continue;
      CHECK(talk.in.compare(talk.got, event.bytes.size(), event.bytes) == 0);
      const size_t used = random() % 2 == 0 ? event.bytes.size() : random() % (event.bytes.size() + 1);
      talk.got += used;
      world.keep(talk.handle, event.bytes.substr(used));
    }
  }
}

/** Each descriptor gets a new handle, with the bytes that were on their way. */
static void handOver(World &world, std::vector<Talk> &talks) {
  streamRecvStopAll(world.streams, 0);
  for (Talk &talk : talks) {
    const int length = streamKeptLength(world.streams, talk.handle);
    std::string kept(static_cast<size_t>(length), '\0');
    streamCopyKept(world.streams, talk.handle, reinterpret_cast<uint8_t *>(&kept[0]));
    std::string unsent(static_cast<size_t>(streamUnsent(world.streams, talk.handle)), '\0');
    streamTakeUnsent(world.streams, talk.handle, reinterpret_cast<uint8_t *>(&unsent[0]));
    talk.handle = streamOpen(world.streams, world.detach(talk.handle));
    CHECK(talk.handle > 0);
    world.keep(talk.handle, kept);
    CHECK(world.send(talk.handle, unsent) >= 0);
    streamRecvStart(world.streams, talk.handle);
  }
}

static void talkUntilOver(World &world, unsigned seed, void (*disturb)(World &world, std::vector<Talk> &talks, int turn)) {
  std::mt19937 random(seed);
  std::vector<Talk> talks;
  for (unsigned i = 0; i < 8; i++) talks.push_back(newTalk(world, seed + i));
  size_t finished = 0;
  for (int turn = 1; finished < talks.size(); turn++) {
    CHECK(turn < 100000);
    for (Talk &talk : talks) step(world, talk, random);
    receive(world, talks, random);
    if (random() % 10 == 0) disturb(world, talks, turn);
    finished = 0;
    for (const Talk &talk : talks) finished += over(talk);
  }
  for (const Talk &talk : talks) close(talk.peer);
}

TABLE_TEST(handed_over, "no byte is lost when descriptors move to other handles") {
  World world(ops, 4096);
  talkUntilOver(world, 11, [](World &w, std::vector<Talk> &talks, int) { handOver(w, talks); });
}

TABLE_TEST(given_up, "no byte is lost when a handover is given up") {
  World world(ops, 4096);
  talkUntilOver(world, 12, [](World &w, std::vector<Talk> &talks, int) {
    streamRecvStopAll(w.streams, talks[0].handle);
    for (const Talk &talk : talks) streamRecvStart(w.streams, talk.handle);
  });
}

TABLE_TEST(not_ahead, "no byte is lost while nothing is received ahead, and none is received for a stopped stream") {
  World world(ops, 4096);
  talkUntilOver(world, 13, [](World &w, std::vector<Talk> &, int turn) { streamReceiveAhead(w.streams, turn % 2 == 0); });
  int peer;
  const int handle = world.openReading(&peer);
  streamReceiveAhead(world.streams, false);
  put(peer, "first");
  CHECK_EQUAL(world.until(kRecv, handle).bytes, std::string("first"));
  streamRecvStop(world.streams, handle);
  put(peer, "second");
  world.quiet();
  CHECK_EQUAL(streamBuffered(world.streams, handle), 0);
  const int fd = world.detach(handle);
  CHECK_EQUAL(get(fd), std::string("second"));
  close(fd);
  close(peer);
}
