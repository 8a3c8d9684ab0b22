#include "world.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <set>

#include "check.h"
#include "loop/uring.h"

using namespace tsb;

/** How long a record is waited for: a busy machine may let a thread wait. */
constexpr double kWaitMost = 20e6;
constexpr int kQuietTurns = 5;

std::string uringRefused() {
  Turn turn;
  CHECK(turn.map());
  int err = 0;
  Loop *loop = kLoopUring.create(&turn, {65536, 0, 0, 0}, &err);
  if (loop) kLoopUring.destroy(loop);
  turn.unmap();
  return loop ? "" : uringRefusal();
}

void uringAsIn519(void (*test)(const LoopOps *ops)) {
  uringBest = {Receiving::kOnce, false};
  test(&kLoopUring);
}

/** Of the loops that are made from now on. */
static int handsOfWorlds = 0;

void withHands(void (*test)(const LoopOps *ops), const LoopOps *ops) {
  handsOfWorlds = 2;
  test(ops);
}

World::World(const LoopOps *ops, int recvMax, int records, int handshakeThreads) {
  int err = 0;
  CHECK(turns.map());
  turns.records = records;
  streams = streamsNew(ops, &turns, {recvMax, handsOfWorlds, 0, handshakeThreads}, &err);
  CHECK_EQUAL(err, 0);
  CHECK(streams != nullptr);
}

World::~World() {
  streamsEnd(streams);
  turns.unmap();
}

static bool ofStream(Kind kind) {
  return kind == kAccept || kind == kConnect || kind == kRecv || kind == kDrain || kind == kReadable || kind == kTls;
}

/** Bytes lie in a buffer of a completion backend, or in a section, behind the delivery before. */
void World::checkPlace(size_t offset, size_t length, size_t *used, std::set<size_t> *buffers) const {
  CHECK(offset + length <= turns.arenaSize());
  for (const Section &section : turns.sections) {
    if (offset < section.begin || offset >= section.end) continue;
    CHECK(offset >= *used && offset + length <= section.end);
    *used = offset + length;
    return;
  }
  CHECK(offset >= kBuffersAt);
  CHECK(offset < kArenaSize || (offset - kArenaSize) % kHandSpace >= 2 * kHandHalf);
  CHECK(buffers->insert(offset).second);
}

std::vector<Event> World::turn(int timeoutMs) {
  const int count = streams->loop->ops->wait(streams->loop, timeoutMs);
  CHECK(count >= 0 && count <= turns.records);
  std::vector<Event> events;
  std::set<int> received;
  std::set<size_t> buffers;
  size_t used = 0;
  for (int i = 0; i < count; i++) {
    const Record &record = turns.ring[i];
    Event event = {static_cast<Kind>(record.kind), record.handle, record.result, record.offset, ""};
    if (ofStream(event.kind)) CHECK(streamLive(streams->all.at(static_cast<size_t>(event.handle))));
    if (event.kind == kRecv || event.kind == kReadable) CHECK(received.insert(event.handle).second);
    if (event.kind == kRecv && event.result > 0) {
      const size_t offset = static_cast<size_t>(event.offset);
      const size_t length = static_cast<size_t>(event.result);
      // no delivery overwrites another
      CHECK(offset % 8 == 0);
      checkPlace(offset, length, &used, &buffers);
      event.bytes.assign(reinterpret_cast<const char *>(turns.arena) + offset, length);
    }
    events.push_back(event);
  }
  // bytes are valid in one turn only
  for (const Record &record : turns.sections[0].late) CHECK(record.kind != kRecv || record.result <= 0);
  return events;
}

Event World::until(Kind kind, int handle) {
  const double end = monotonicUsec() + kWaitMost;
  while (monotonicUsec() < end)
    for (const Event &event : turn(10))
      if (event.kind == kind && event.handle == handle) return event;
  check::fail(__FILE__, __LINE__, "no record " + std::to_string(kind) + " of handle " + std::to_string(handle));
}

std::string World::receive(int handle, size_t length) {
  std::string bytes;
  while (bytes.size() < length) {
    const Event event = until(kRecv, handle);
    CHECK(event.result > 0);
    bytes += event.bytes;
  }
  return bytes;
}

void World::quiet() {
  for (int i = 0; i < kQuietTurns; i++) CHECK_EQUAL(turn(i == 0 ? 5 : 0).size(), 0u);
}

int World::open(int *peer) {
  int pair[2];
  CHECK_EQUAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
  const int handle = streamOpen(streams, pair[0]);
  CHECK(handle > 0);
  *peer = pair[1];
  return handle;
}

int World::openReading(int *peer) {
  const int handle = open(peer);
  CHECK_EQUAL(streamRecvStart(streams, handle), 0);
  return handle;
}

int World::send(int handle, const std::string &bytes) {
  return streamSend(streams, handle, reinterpret_cast<const uint8_t *>(bytes.data()), bytes.size(), Origin::kCaller);
}

void World::keep(int handle, const std::string &bytes) {
  CHECK_EQUAL(streamKeep(streams, handle, reinterpret_cast<const uint8_t *>(bytes.data()), bytes.size()), 0);
}

void World::close(int handle) { CHECK_EQUAL(streamClose(streams, handle), 0); }

int World::detach(int handle) { return streamDetach(streams, handle); }

size_t put(int fd, const std::string &bytes) {
  const ssize_t n = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  return n < 0 ? 0 : static_cast<size_t>(n);
}

std::string get(int fd) {
  std::string bytes(65536, '\0');
  const ssize_t n = ::recv(fd, &bytes[0], bytes.size(), MSG_DONTWAIT);
  bytes.resize(n < 0 ? 0 : static_cast<size_t>(n));
  return bytes;
}

std::string pattern(size_t length, unsigned seed) {
  std::string bytes(length, '\0');
  // a generator of Park and Miller's kind: no two parts of the stream are alike
  uint64_t state = seed * 2654435761u + 1;
  for (char &byte : bytes) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    byte = static_cast<char>(state >> 56);
  }
  return bytes;
}
