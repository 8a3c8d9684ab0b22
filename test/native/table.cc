/*
 * What the table of operations promises (native/loop/loop.h), for each backend by the same tests. World::turn() checks on
 * every turn: one RECV a handle, deliveries that do not overlap, no more records than the ring has, nothing after detach.
 */
#include <errno.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <random>

#include "check.h"
#include "fake_tls.h"
#include "world.h"

using namespace tsb;

/** A byte stream between a handle and its peer, one way, and how far it has come. */
struct Flow {
  int handle;
  int peer;
  std::string all;
  size_t put;
  size_t got;
  std::string kept;
};

/** One step at the peer's end and one at the handle's, of the sort and size that `random` says. */
static void disturb(World &world, Flow &flow, std::mt19937 &random) {
  flow.put += put(flow.peer, flow.all.substr(flow.put, random() % 9000));
  if (random() % 5 == 0) streamRecvStop(world.streams, flow.handle);
  if (random() % 3 == 0) streamRecvStart(world.streams, flow.handle);
  if (random() % 4 == 0) streamRecvLimit(world.streams, flow.handle, static_cast<int>(random() % 3000));
}

/** Takes a part of a delivery and gives the rest back, as the reader of packets does. */
static void take(World &world, Flow &flow, const Event &event, std::mt19937 &random) {
  CHECK(event.result > 0);
  CHECK(event.bytes.compare(0, flow.kept.size(), flow.kept) == 0);
  CHECK(flow.all.compare(flow.got, event.bytes.size(), event.bytes) == 0);
  const size_t used = random() % 2 == 0 ? event.bytes.size() : random() % (event.bytes.size() + 1);
  flow.kept = event.bytes.substr(used);
  flow.got += used;
  world.keep(flow.handle, flow.kept.substr(0, flow.kept.size() / 2));
  world.keep(flow.handle, flow.kept.substr(flow.kept.size() / 2));
}

TABLE_TEST(order_received, "bytes arrive in their order, whatever is kept, stopped and started") {
  World world(ops, 4096);
  std::mt19937 random(1);
  std::map<int, Flow> flows;
  for (unsigned i = 0; i < 12; i++) {
    int peer;
    const int handle = world.openReading(&peer);
    flows[handle] = {handle, peer, pattern(200000, i), 0, 0, {}};
  }
  size_t finished = 0;
  for (int i = 0; finished < flows.size(); i++) {
    CHECK(i < 100000);
    for (auto &entry : flows) disturb(world, entry.second, random);
    for (const Event &event : world.turn()) take(world, flows.at(event.handle), event, random);
    finished = 0;
    for (auto &entry : flows) finished += entry.second.got == entry.second.all.size();
  }
  for (auto &entry : flows) close(entry.second.peer);
}

TABLE_TEST(order_sent, "bytes leave in their order, and the end of the queue is reported once") {
  World world(ops);
  std::mt19937 random(2);
  int peer;
  const int handle = world.open(&peer);
  const std::string all = pattern(3000000, 7);
  std::string got;
  size_t sent = 0;
  int drained = 0, queued = 0;
  while (got.size() < all.size() || streamUnsent(world.streams, handle) > 0) {
    if (sent < all.size() && streamUnsent(world.streams, handle) < 500000) {
      const std::string part = all.substr(sent, random() % 60000);
      const bool before = streamUnsent(world.streams, handle) > 0;
      const int unsent = world.send(handle, part);
      CHECK_EQUAL(unsent, streamUnsent(world.streams, handle));
      if (!before && unsent > 0) queued++;
      sent += part.size();
    }
    for (const Event &event : world.turn()) {
      CHECK(event.kind == kDrain && event.handle == handle && event.result == 0);
      drained++;
    }
    if (random() % 2 == 0) got += get(peer);
    CHECK(all.compare(0, got.size(), got) == 0);
  }
  CHECK(queued > 0);
  CHECK_EQUAL(drained, queued);
  world.quiet();
  close(peer);
}

TABLE_TEST(kept_in_front, "kept bytes come in front of the next ones, and alone only after a stop and a start") {
  World world(ops);
  int peer;
  const int handle = world.openReading(&peer);
  put(peer, "abcdef");
  CHECK_EQUAL(world.until(kRecv, handle).bytes, std::string("abcdef"));
  world.keep(handle, "ef");
  world.quiet();
  put(peer, "gh");
  CHECK_EQUAL(world.until(kRecv, handle).bytes, std::string("efgh"));
  world.keep(handle, "h");
  streamRecvStop(world.streams, handle);
  streamRecvStart(world.streams, handle);
  CHECK_EQUAL(world.until(kRecv, handle).bytes, std::string("h"));
  world.quiet();
  world.keep(handle, "i");
  streamRecvStop(world.streams, handle);
  streamRecvStart(world.streams, handle);
  streamRecvStop(world.streams, handle);
  world.quiet();
  CHECK_EQUAL(streamKeptLength(world.streams, handle), 1);
  close(peer);
}

TABLE_TEST(end_after_kept, "an end comes after the kept bytes, and once") {
  World world(ops);
  int peer;
  const int handle = world.openReading(&peer);
  put(peer, "half");
  CHECK_EQUAL(world.until(kRecv, handle).bytes, std::string("half"));
  streamRecvStop(world.streams, handle);
  world.keep(handle, "lf");
  close(peer);
  world.quiet();
  streamRecvStart(world.streams, handle);
  CHECK_EQUAL(world.until(kRecv, handle).bytes, std::string("lf"));
  CHECK_EQUAL(world.until(kRecv, handle).result, 0);
  world.quiet();
}

TABLE_TEST(end_with_bytes, "an end that arrives together with the last bytes is not lost") {
  World world(ops);
  int peer;
  const int handle = world.openReading(&peer);
  put(peer, "bye");
  close(peer);
  CHECK_EQUAL(world.until(kRecv, handle).bytes, std::string("bye"));
  CHECK_EQUAL(world.until(kRecv, handle).result, 0);
  world.quiet();
}

TABLE_TEST(ended, "the end of a stream that is not received from can be asked for") {
  World world(ops);
  int peer;
  const int handle = world.openReading(&peer);
  world.turn();
  streamRecvStop(world.streams, handle);
  CHECK_EQUAL(streamEnded(world.streams, handle), 0);
  put(peer, "x");
  world.turn();
  CHECK_EQUAL(streamEnded(world.streams, handle), 0);
  streamRecvStart(world.streams, handle);
  CHECK_EQUAL(world.until(kRecv, handle).bytes, std::string("x"));
  streamRecvStop(world.streams, handle);
  close(peer);
  world.turn();
  CHECK_EQUAL(streamEnded(world.streams, handle), 1);
}

TABLE_TEST(too_much_kept, "a connection that keeps too much is ended") {
  World world(ops);
  int peer;
  const int handle = world.openReading(&peer);
  world.keep(handle, std::string(kKeptMax, 'k'));
  put(peer, "x");
  Event whole = world.until(kRecv, handle);
  CHECK_EQUAL(static_cast<size_t>(whole.result), kKeptMax + 1);
  world.keep(handle, std::string(kKeptMax + 1, 'k'));
  put(peer, "y");
  CHECK_EQUAL(world.until(kRecv, handle).result, -EMSGSIZE);
  world.quiet();
  close(peer);
}

TABLE_TEST(after_detach, "nothing is reported after a detach or a close, whatever was due") {
  World world(ops);
  int peers[4], handles[4];
  for (int i = 0; i < 4; i++) handles[i] = world.openReading(&peers[i]);
  for (const int peer : peers) put(peer, pattern(100000, 3));
  world.turn();
  // more bytes are due, kept ones come again, a send is queued, and a failure waits
  for (const int handle : handles) {
    streamRecvStop(world.streams, handle);
    world.keep(handle, "kept");
    streamRecvStart(world.streams, handle);
  }
  world.send(handles[1], pattern(1000000, 4));
  streamFailed(world.streams->all[static_cast<size_t>(handles[2])], -EIO);
  const int fd = world.detach(handles[0]);
  for (int i = 1; i < 4; i++) world.close(handles[i]);
  for (const int peer : peers) put(peer, "more");
  world.quiet();
  // the descriptor is whole, and works with its next handle
  const int again = streamOpen(world.streams, fd);
  CHECK(again > 0 && again != handles[0]);
  streamRecvStart(world.streams, again);
  while (get(fd).size() > 0) {
  }
  put(peers[0], "again");
  CHECK_EQUAL(world.receive(again, 5), std::string("again"));
  for (const int peer : peers) close(peer);
}

TABLE_TEST(handle_numbers, "a handle number is not given out again before the next wait") {
  World world(ops);
  int peers[2];
  const int first = world.openReading(&peers[0]);
  put(peers[0], "x");
  world.close(first);
  const int second = world.open(&peers[1]);
  CHECK(second != first);
  world.quiet();
  close(peers[0]);
  CHECK_EQUAL(world.openReading(&peers[0]), first);
  put(peers[0], "y");
  CHECK_EQUAL(world.until(kRecv, first).bytes, std::string("y"));
}

TABLE_TEST(full_ring, "a turn has no more records than the ring, and none is lost") {
  // a quarter of the ring, so that fewer descriptors fill it
  World world(ops, 1024, kRingRecords / 4);
  const int count = world.turns.records * 2 / 3;
  std::map<int, int> peers;
  std::map<int, std::string> got;
  std::map<int, int> drained;
  for (int i = 0; i < count; i++) {
    int peer;
    const int handle = world.openReading(&peer);
    peers[handle] = peer;
    const int small = 1;
    CHECK_EQUAL(setsockopt(streamFd(world.streams, handle), SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
    CHECK_EQUAL(world.send(handle, std::string(6000, 's')), 0);
    CHECK(streamUnsent(world.streams, handle) > 0);
  }
  for (int i = 0; i < 3; i++) CHECK_EQUAL(world.turn().size(), 0u);
  // now every handle receives and drains in the same turn
  for (auto &entry : peers) CHECK_EQUAL(put(entry.second, std::to_string(entry.first) + "\n"), std::to_string(entry.first).size() + 1);
  for (int i = 0; i < 200 && (got.size() < peers.size() || drained.size() < peers.size()); i++) {
    for (auto &entry : peers) get(entry.second);
    for (const Event &event : world.turn()) {
      if (event.kind == kDrain) drained[event.handle]++;
      if (event.kind == kRecv) got[event.handle] += event.bytes;
    }
  }
  for (auto &entry : peers) {
    CHECK_EQUAL(drained[entry.first], 1);
    CHECK_EQUAL(got[entry.first], std::to_string(entry.first) + "\n");
    close(entry.second);
  }
}

TABLE_TEST(late_records, "records that find the ring full are the first ones of the next turn") {
  World world(ops, 1024, kRingRecords / 4);
  const int most = world.turns.sections[0].most;
  for (int i = 0; i < 2 * most + 5; i++) world.turns.addForNext(kResolved, i + 1, 0);
  int next = 1;
  for (const int expected : {most, most, 5}) {
    const std::vector<Event> events = world.turn();
    CHECK_EQUAL(static_cast<int>(events.size()), expected);
    for (const Event &event : events) CHECK_EQUAL(event.handle, next++);
  }
  world.quiet();
}

TABLE_TEST(late_of_closed, "a late record of a handle that is closed does not reach the connection that gets its number") {
  World world(ops);
  int peer;
  const int handle = world.open(&peer);
  // more records than a turn has: the last ones are of this handle
  for (int i = 0; i < 2 * world.turns.sections[0].most; i++) world.turns.addForNext(kResolved, i + 1, 0);
  for (const Kind kind : {kConnect, kDrain, kTls}) world.turns.addForNext(kind, handle, -1);
  world.turn();
  world.close(handle);
  for (int i = 0; i < 3; i++)
    for (const Event &event : world.turn()) CHECK(event.kind == kResolved);
  close(peer);
}

TABLE_TEST(many_entries, "a wait with more to submit than a ring takes at once returns when there is something") {
  constexpr int kConnections = 1100;
  rlimit limit;
  CHECK_EQUAL(getrlimit(RLIMIT_NOFILE, &limit), 0);
  CHECK(limit.rlim_max > 2 * kConnections + 100);
  limit.rlim_cur = limit.rlim_max;
  CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &limit), 0);
  World world(ops);
  int asker;
  const int answerer = world.openReading(&asker);
  for (int i = 0; i < 5; i++) world.turn();
  std::vector<int> peers(kConnections);
  for (int &peer : peers) world.openReading(&peer);
  world.send(answerer, "a query");
  put(asker, "an answer");
  constexpr int kWaitMs = 10000;
  const double before = monotonicUsec();
  std::string got;
  // epoll hands out so many events at a time
  for (int i = 0; i < 3 && got.empty(); i++)
    for (const Event &event : world.turn(kWaitMs))
      if (event.handle == answerer) got += event.bytes;
  CHECK(got == "an answer");
  CHECK(monotonicUsec() - before < kWaitMs * 1e3 / 2);
  for (const int peer : peers) close(peer);
  close(asker);
}

TABLE_TEST(shares, "saturated streams get equal shares, and a small query waits for none of them") {
  constexpr int kStreams = 200, kTurns = 60;
  World world(ops);
  int asker;
  const int answerer = world.openReading(&asker);
  std::map<int, int> peers;
  std::map<int, size_t> got;
  const std::string block = pattern(65536, 5);
  for (int i = 0; i < kStreams; i++) {
    int peer;
    const int handle = world.openReading(&peer);
    peers[handle] = peer;
  }
  for (int i = 0; i < kTurns; i++) {
    for (auto &entry : peers) put(entry.second, block);
    put(asker, "small");
    bool answered = false;
    for (const Event &event : world.turn()) {
      if (event.handle == answerer) answered = true;
      else got[event.handle] += event.bytes.size();
    }
    CHECK(answered);
  }
  size_t least = SIZE_MAX, most = 0;
  for (auto &entry : peers) {
    least = got[entry.first] < least ? got[entry.first] : least;
    most = got[entry.first] > most ? got[entry.first] : most;
    close(entry.second);
  }
  CHECK(least > 0 && most <= 2 * least);
  close(asker);
}

/** What is kept of a handle, and behind it what its descriptor still has. Detaches it. */
static std::string takeAll(World &world, int handle) {
  std::string bytes(static_cast<size_t>(streamKeptLength(world.streams, handle)), '\0');
  streamCopyKept(world.streams, handle, reinterpret_cast<uint8_t *>(&bytes[0]));
  const int fd = world.detach(handle);
  for (std::string more = get(fd); !more.empty(); more = get(fd)) bytes += more;
  close(fd);
  return bytes;
}

TABLE_TEST(quiesce, "after stopping everywhere each byte is kept or in the socket") {
  World world(ops);
  std::map<int, int> peers;
  std::map<int, std::string> got;
  const std::string all = pattern(100000, 6);
  for (int i = 0; i < 5; i++) {
    int peer;
    const int handle = world.openReading(&peer);
    peers[handle] = peer;
    CHECK_EQUAL(put(peer, all), all.size());
  }
  for (const Event &event : world.turn()) got[event.handle] += event.bytes;
  const int except = peers.begin()->first;
  const int sender = peers.rbegin()->first;
  world.send(sender, pattern(2000000, 8));
  const std::vector<int> unsent = streamRecvStopAll(world.streams, except);
  CHECK_EQUAL(unsent.size(), 1u);
  CHECK_EQUAL(unsent[0], sender);
  for (int i = 0; i < 20; i++)
    for (const Event &event : world.turn()) {
      CHECK_EQUAL(event.handle, except);
      got[except] += event.bytes;
    }
  got[except] += world.receive(except, all.size() - got[except].size());
  for (auto &entry : peers) {
    CHECK(got[entry.first] + takeAll(world, entry.first) == all);
    close(entry.second);
  }
}

TABLE_TEST(quiesced_again, "what was received after a stop comes first after the next start") {
  World world(ops);
  int peer;
  const int handle = world.openReading(&peer);
  const std::string all = pattern(60000, 11);
  CHECK_EQUAL(put(peer, all), all.size());
  std::string got = world.until(kRecv, handle).bytes;
  streamRecvStopAll(world.streams, 0);
  world.quiet();
  streamRecvStart(world.streams, handle);
  CHECK(got + world.receive(handle, all.size() - got.size()) == all);
  close(peer);
}

TABLE_TEST(counted, "each received byte is counted once, also what arrives for a stopped stream") {
  World world(ops);
  int peer;
  const int handle = world.openReading(&peer);
  put(peer, "1");
  CHECK_EQUAL(world.receive(handle, 1), std::string("1"));
  world.quiet();
  streamRecvLimit(world.streams, handle, 1);
  put(peer, "234");
  const std::string some = world.receive(handle, 1);
  // a backend may have received the others already
  streamRecvStopAll(world.streams, 0);
  streamRecvStart(world.streams, handle);
  CHECK_EQUAL(some + world.receive(handle, 3 - some.size()), std::string("234"));
  world.quiet();
  streamRecvStop(world.streams, handle);
  put(peer, "567");
  world.turn(5);
  streamRecvStart(world.streams, handle);
  CHECK_EQUAL(world.receive(handle, 3), std::string("567"));
  uint64_t received = 0;
  for (const Lane *lane : world.streams->loop->lanes) received += lane->received;
  CHECK_EQUAL(received, uint64_t{7});
  close(peer);
}

/** An abstract address that no other run uses. */
static socklen_t address(sockaddr_un *addr) {
  static int number = 0;
  *addr = {};
  addr->sun_family = AF_UNIX;
  const int n = snprintf(addr->sun_path + 1, sizeof(addr->sun_path) - 1, "tsb-table-%d-%d", getpid(), number++);
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + static_cast<size_t>(n));
}

TABLE_TEST(connects, "a connect is reported in a later turn, and what was sent before it follows it") {
  World world(ops);
  sockaddr_un addr;
  const socklen_t length = address(&addr);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int refused = streamConnect(world.streams, -1, reinterpret_cast<sockaddr *>(&addr), length);
  CHECK(world.until(kConnect, refused).result < 0);
  world.close(refused);
  CHECK_EQUAL(bind(fd, reinterpret_cast<sockaddr *>(&addr), length), 0);
  CHECK_EQUAL(listen(fd, 8), 0);
  const int listener = streamListen(world.streams, fd);
  CHECK_EQUAL(streamListenStart(world.streams, listener, true), 0);
  const int client = streamConnect(world.streams, -1, reinterpret_cast<sockaddr *>(&addr), length);
  CHECK_EQUAL(world.send(client, "first"), 5);
  std::vector<Event> events;
  while (events.size() < 3)
    for (const Event &event : world.turn(100)) events.push_back(event);
  int accepted = -1, connectAt = -1, drainAt = -1;
  for (int i = 0; i < 3; i++) {
    if (events[static_cast<size_t>(i)].kind == kAccept) accepted = events[static_cast<size_t>(i)].result;
    if (events[static_cast<size_t>(i)].kind == kConnect) connectAt = i;
    if (events[static_cast<size_t>(i)].kind == kDrain) drainAt = i;
  }
  CHECK(accepted >= 0 && connectAt >= 0 && drainAt > connectAt);
  const int server = streamOpen(world.streams, accepted);
  streamRecvStart(world.streams, server);
  CHECK_EQUAL(world.receive(server, 5), std::string("first"));
  streamListenStart(world.streams, listener, false);
  const int late = streamConnect(world.streams, -1, reinterpret_cast<sockaddr *>(&addr), length);
  world.until(kConnect, late);
  world.quiet();
}

TABLE_TEST(wakes, "another thread's write wakes the wait, and a request to break does") {
  World world(ops);
  const uint64_t one = 1;
  CHECK_EQUAL(write(world.streams->loop->wakeFd, &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
  std::vector<Event> events = world.turn(-1);
  CHECK_EQUAL(events.size(), 1u);
  CHECK_EQUAL(static_cast<int>(events[0].kind), static_cast<int>(kWake));
  world.streams->loop->breakRequested = true;
  CHECK_EQUAL(world.turn(-1).size(), 0u);
  world.quiet();
}

TABLE_TEST(watches, "a watched descriptor is reported once a turn while it is readable, and outlives its handle") {
  World world(ops);
  int pair[2];
  CHECK_EQUAL(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  const int handle = streamWatch(world.streams, pair[0]);
  world.quiet();
  put(pair[1], "x");
  world.until(kReadable, handle);
  world.until(kReadable, handle);
  CHECK_EQUAL(get(pair[0]), std::string("x"));
  world.quiet();
  world.close(handle);
  CHECK_EQUAL(put(pair[1], "y"), 1u);
  CHECK_EQUAL(get(pair[0]), std::string("y"));
}
