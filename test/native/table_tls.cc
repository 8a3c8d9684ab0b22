/* TLS on a stream, over each backend: where its bytes come from and when it must not be read from. */
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "fake_tls.h"
#include "world.h"

using namespace tsb;

/** A connection with TLS, its handshake done. */
static int openTls(World &world, int *peer) {
  const int handle = world.open(peer);
  CHECK_EQUAL(streamTlsStart(world.streams, handle, fakeTlsNew(), nullptr, 0), 0);
  // the first step needs nothing of the peer
  for (int i = 0; get(*peer) != "H"; i++) {
    CHECK(i < 10);
    for (const Event &event : world.turn()) CHECK(event.kind == kDrain);
  }
  put(*peer, "H");
  CHECK_EQUAL(world.until(kTls, handle).result, 0);
  return handle;
}

TABLE_TEST(tls_handshake, "a handshake is reported whether input is wanted or not, and data waits until it is") {
  World world(ops);
  int peer;
  const int handle = world.open(&peer);
  put(peer, "H" + fakeTlsRecord("early"));
  CHECK_EQUAL(streamTlsStart(world.streams, handle, fakeTlsNew(), nullptr, 0), 0);
  CHECK_EQUAL(world.until(kTls, handle).result, 0);
  for (int i = 0; i < 5; i++)
    for (const Event &event : world.turn()) CHECK(event.kind != kRecv);
  streamRecvStart(world.streams, handle);
  CHECK_EQUAL(world.receive(handle, 5), std::string("early"));
  get(peer);
  close(peer);
  CHECK_EQUAL(world.until(kRecv, handle).result, 0);
  world.quiet();
}

TABLE_TEST(tls_prefix, "bytes that were received before TLS began are its first ones") {
  World world(ops);
  int peer;
  const int handle = world.openReading(&peer);
  const std::string first = "H" + fakeTlsRecord("with it");
  CHECK_EQUAL(streamTlsStart(world.streams, handle, fakeTlsNew(), reinterpret_cast<const uint8_t *>(first.data()), first.size()), 0);
  CHECK_EQUAL(world.until(kTls, handle).result, 0);
  CHECK_EQUAL(world.receive(handle, 7), std::string("with it"));
  close(peer);
}

TABLE_TEST(tls_order, "decrypted bytes come in their order, also when kept and when their records come in parts") {
  World world(ops, 4096);
  int peer;
  const int handle = openTls(world, &peer);
  const std::string all = pattern(120000, 9);
  std::string records, got;
  for (size_t at = 0; at < all.size(); at += 1500) records += fakeTlsRecord(all.substr(at, 1500));
  size_t sent = 0;
  streamRecvStart(world.streams, handle);
  for (int i = 0; got.size() < all.size(); i++) {
    CHECK(i < 100000);
    sent += put(peer, records.substr(sent, 700));
    for (const Event &event : world.turn()) {
      if (event.kind == kDrain) continue;
      CHECK(event.kind == kRecv && event.result > 0);
      const size_t used = i % 3 == 0 ? event.bytes.size() / 2 : event.bytes.size();
      CHECK(all.compare(got.size(), event.bytes.size(), event.bytes) == 0);
      got += event.bytes.substr(0, used);
      world.keep(handle, event.bytes.substr(used));
    }
    if (i % 5 == 0) streamRecvStop(world.streams, handle);
    if (i % 2 == 0) streamRecvStart(world.streams, handle);
  }
  CHECK(got == all);
  close(peer);
}

TABLE_TEST(tls_unsent, "a peer that does not receive the answers it asks for is not read from, until it does") {
  // what a connection may be given at once, and hold ahead
  constexpr size_t kAtOnce = 2 * kTlsPieceSize;
  World world(ops);
  int peer;
  const int handle = openTls(world, &peer);
  streamRecvStart(world.streams, handle);
  std::string questions;
  for (int i = 0; i < 1000; i++) questions += fakeTlsQuestion(1000);
  questions += fakeTlsRecord("last");
  size_t asked = 0;
  for (int i = 0; i < 200; i++) {
    asked += put(peer, questions.substr(asked));
    CHECK_EQUAL(world.turn().size(), 0u);
  }
  const size_t unsent = static_cast<size_t>(streamUnsent(world.streams, handle));
  CHECK(unsent > kTlsUnsentMax && unsent < kTlsUnsentMax + kAtOnce);
  std::string got;
  size_t answered = 0;
  for (int i = 0; got.empty(); i++) {
    CHECK(i < 100000);
    asked += put(peer, questions.substr(asked));
    answered += get(peer).size();
    for (const Event &event : world.turn()) got += event.bytes;
    CHECK(static_cast<size_t>(streamUnsent(world.streams, handle)) < kTlsUnsentMax + kAtOnce);
  }
  CHECK_EQUAL(got, std::string("last"));
  CHECK_EQUAL(asked, questions.size());
  while (answered < questions.size() - fakeTlsRecord("last").size()) {
    answered += get(peer).size();
    world.turn();
  }
  close(peer);
}

TABLE_TEST(tls_both_ways, "a peer that has to be read from before it receives is read from") {
  World world(ops);
  int peer;
  const int handle = openTls(world, &peer);
  streamRecvStart(world.streams, handle);
  world.send(handle, pattern(2000000, 10));
  CHECK(streamUnsent(world.streams, handle) > static_cast<int>(kTlsUnsentMax));
  const std::string all = pattern(3000000, 11);
  std::string records, got;
  for (size_t at = 0; at < all.size(); at += 1500) records += fakeTlsRecord(all.substr(at, 1500));
  size_t sent = 0;
  for (int i = 0; got.size() < all.size(); i++) {
    CHECK(i < 100000);
    sent += put(peer, records.substr(sent, 50000));
    for (const Event &event : world.turn()) got += event.bytes;
  }
  CHECK(got == all);
  CHECK(streamUnsent(world.streams, handle) > static_cast<int>(kTlsUnsentMax));
  close(peer);
}

TABLE_TEST(tls_end, "an end comes after kept bytes, and a broken connection says so") {
  World world(ops);
  int peer;
  const int handle = openTls(world, &peer);
  streamRecvStart(world.streams, handle);
  put(peer, fakeTlsRecord("abc"));
  CHECK_EQUAL(world.receive(handle, 3), std::string("abc"));
  streamRecvStop(world.streams, handle);
  world.keep(handle, "bc");
  streamRecvStart(world.streams, handle);
  streamRecvStop(world.streams, handle);
  world.quiet();
  // unread bytes at the closing end are a reset
  world.send(handle, "unread");
  world.turn(5);
  close(peer);
  world.turn(5);
  streamRecvStart(world.streams, handle);
  CHECK_EQUAL(world.until(kRecv, handle).bytes, std::string("bc"));
  CHECK_EQUAL(world.until(kRecv, handle).result, -ECONNRESET);
  world.quiet();
}

TABLE_TEST(tls_joined, "small pieces that are queued together become one record, in order with what is too large to join") {
  World world(ops);
  int peer, betweenPeer, otherPeer;
  const int handle = openTls(world, &peer);
  // with hands, every second connection belongs to the same one
  world.open(&betweenPeer);
  const int other = openTls(world, &otherPeer);
  // pieces of another connection lie between them
  const auto send = [&world, handle, other](const std::string &bytes) {
    CHECK_EQUAL(world.send(handle, bytes), 0);
    CHECK_EQUAL(world.send(other, "-"), 0);
  };
  const auto arrives = [&world, peer](const std::string &expected) {
    std::string got;
    for (int i = 0; got.size() < expected.size(); i++) {
      CHECK(i < 1000);
      world.turn();
      got += get(peer);
    }
    CHECK(got == expected);
  };
  for (const char *piece : {"one", "two", "three"}) send(piece);
  arrives(fakeTlsRecord("onetwothree"));
  const std::string large = pattern(12000, 3);
  for (const std::string &piece : {std::string("before"), large, std::string("behind")}) send(piece);
  std::string records = fakeTlsRecord("before");
  for (size_t at = 0; at < large.size(); at += 4096) records += fakeTlsRecord(large.substr(at, 4096));
  arrives(records + fakeTlsRecord("behind"));
  send("last");
  CHECK_EQUAL(streamUnsent(world.streams, handle), 0);
  CHECK(get(peer) == fakeTlsRecord("last"));
  world.turn();
  CHECK(get(otherPeer) == fakeTlsRecord("---") + fakeTlsRecord("---") + fakeTlsRecord("-"));
  close(peer);
  close(betweenPeer);
  close(otherPeer);
}

TABLE_TEST(tls_threads, "handshakes in threads: each is reported, data follows, and a connection may be closed at any time") {
  World world(ops, 65536, kRingRecords, 2);
  constexpr int kConnections = 60;
  std::map<int, int> peers;
  for (int i = 0; i < kConnections; i++) {
    int peer;
    const int handle = i % 2 == 0 ? world.open(&peer) : world.openReading(&peer);
    CHECK_EQUAL(streamTlsStart(world.streams, handle, fakeTlsNew(), nullptr, 0), 0);
    peers[handle] = peer;
  }
  const auto closeSome = [&world, &peers](int which) {
    for (auto entry = peers.begin(); entry != peers.end();) {
      if (entry->first % 7 != which) {
        ++entry;
        continue;
      }
      world.close(entry->first);
      close(entry->second);
      entry = peers.erase(entry);
    }
  };
  closeSome(0);
  world.turn();
  closeSome(1);
  for (auto &entry : peers) put(entry.second, "H" + fakeTlsRecord("at once"));
  world.turn();
  closeSome(2);
  std::map<int, bool> shaken;
  std::map<int, std::string> got;
  const auto turn = [&world, &shaken, &got] {
    for (const Event &event : world.turn(10)) {
      if (event.kind == kRecv) got[event.handle] += event.bytes;
      if (event.kind != kTls) continue;
      CHECK_EQUAL(event.result, 0);
      CHECK(shaken.emplace(event.handle, true).second);
      streamRecvStart(world.streams, event.handle);
    }
  };
  for (int i = 0; shaken.size() < peers.size(); i++) {
    CHECK(i < 1000000);
    turn();
  }
  for (auto &entry : peers) {
    CHECK_EQUAL(get(entry.second), std::string("H"));
    put(entry.second, fakeTlsRecord("more"));
    world.send(entry.first, "answer");
  }
  for (auto &entry : peers) {
    for (int i = 0; got[entry.first] != "at oncemore"; i++) {
      CHECK(i < 1000000);
      turn();
    }
    CHECK_EQUAL(get(entry.second), fakeTlsRecord("answer"));
    close(entry.second);
    world.close(entry.first);
  }
}

TABLE_TEST(tls_threads_end, "handshakes in threads: a failure and an end of the stream are reported") {
  World world(ops, 65536, kRingRecords, 1);
  int wrong, gone;
  const int wrongHandle = world.open(&wrong);
  const int goneHandle = world.open(&gone);
  for (const int handle : {wrongHandle, goneHandle})
    CHECK_EQUAL(streamTlsStart(world.streams, handle, fakeTlsNew(), nullptr, 0), 0);
  put(wrong, "X");
  CHECK_EQUAL(world.until(kTls, wrongHandle).result, -EPROTO);
  close(gone);
  CHECK(world.until(kTls, goneHandle).result < 0);
  // the loop ends while steps are under way
  for (int i = 0; i < 20; i++) {
    int peer;
    CHECK_EQUAL(streamTlsStart(world.streams, world.open(&peer), fakeTlsNew(), nullptr, 0), 0);
    put(peer, "H");
    close(peer);
  }
  world.turn();
  close(wrong);
}
