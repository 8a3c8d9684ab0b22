/* Hands begin and end to work while connections are busy. */
#include <unistd.h>

#include "check.h"
#include "fake_tls.h"
#include "world.h"

using namespace tsb;

namespace {

/** A connection that echoes what it receives, and its peer, which sends `all` and checks what comes back. */
struct Echo {
  int handle;
  int peer;
  std::string all;
  size_t sent = 0;
  std::string back;
};

void turnAndEcho(World &world, std::map<int, Echo *> &byHandle, bool keep) {
  for (const Event &event : world.turn()) {
    if (event.kind != kRecv) continue;
    CHECK(event.result > 0);
    Echo *echo = byHandle.at(event.handle);
    if (keep && event.bytes.size() > 1) {
      // a part is asked for again, as of a packet that is not complete
      world.keep(event.handle, event.bytes.substr(1));
      world.send(echo->handle, event.bytes.substr(0, 1));
      streamRecvStop(world.streams, event.handle);
      streamRecvStart(world.streams, event.handle);
    } else {
      world.send(echo->handle, event.bytes);
    }
  }
}

}  // namespace

TABLE_TEST(lanes_change, "hands begin and end to work, and no connection loses a byte") {
  constexpr int kEchoes = 150;
  World world(ops, 4096);
  Loop *loop = world.streams->loop;
  std::vector<Echo> echoes(kEchoes);
  std::map<int, Echo *> byHandle;
  for (size_t i = 0; i < echoes.size(); i++) {
    Echo *echo = &echoes[i];
    echo->handle = world.openReading(&echo->peer);
    echo->all = pattern(i % 10 == 0 ? 100000 : 3000, static_cast<unsigned>(i));
    byHandle[echo->handle] = echo;
  }
  size_t done = 0;
  for (int i = 0; done < echoes.size(); i++) {
    CHECK(i < 20000);
    if (i % 5 == 0 && loop->hands) loop->duty.on = !loop->duty.on;
    for (Echo &echo : echoes) {
      echo.sent += put(echo.peer, echo.all.substr(echo.sent, i % 3 == 0 ? 5000 : 100));
      echo.back += get(echo.peer);
    }
    turnAndEcho(world, byHandle, i % 7 == 0);
    done = 0;
    for (const Echo &echo : echoes) done += echo.back.size() >= echo.all.size() ? 1 : 0;
  }
  for (const Echo &echo : echoes) {
    CHECK(echo.back == echo.all);
    close(echo.peer);
    CHECK_EQUAL(world.until(kRecv, echo.handle).result, 0);
    world.close(echo.handle);
  }
}

namespace {

/** A connection whose bytes are forwarded to another one, and the peers at both ends. */
struct Flow {
  int source;
  int sourcePeer;
  int sink;
  int sinkPeer;
  std::string all;
  size_t sent = 0;
  size_t arrived = 0;
};

}  // namespace

TABLE_TEST(lanes_forward, "hands begin and end to work, and bytes that are sent by reference stay as they are") {
  // more connections than change their lane in one turn, with more bytes than a turn takes from each
  constexpr size_t kFlows = 300;
  World world(ops, 65536);
  Loop *loop = world.streams->loop;
  std::vector<Flow> flows(kFlows);
  std::map<int, Flow *> bySource;
  for (Flow &flow : flows) flow.sink = world.openReading(&flow.sinkPeer);
  for (size_t i = 0; i < kFlows; i++) {
    Flow *flow = &flows[i];
    flow->source = world.openReading(&flow->sourcePeer);
    flow->all = pattern(400000, static_cast<unsigned>(i + 1));
    bySource[flow->source] = flow;
  }
  size_t done = 0;
  for (int i = 0; done < kFlows; i++) {
    CHECK(i < 20000);
    if (i % 20 == 10 && loop->hands) loop->duty.on = !loop->duty.on;
    done = 0;
    for (Flow &flow : flows) {
      if (flow.sent - flow.arrived < 60000) flow.sent += put(flow.sourcePeer, flow.all.substr(flow.sent, 30000));
      const std::string bytes = get(flow.sinkPeer);
      CHECK(flow.all.compare(flow.arrived, bytes.size(), bytes) == 0);
      flow.arrived += bytes.size();
      done += flow.arrived == flow.all.size() ? 1 : 0;
    }
    for (const Event &event : world.turn()) {
      if (event.kind != kRecv) continue;
      const uint8_t *bytes = world.turns.arena + event.offset;
      const size_t length = static_cast<size_t>(event.result);
      CHECK(streamSend(world.streams, bySource.at(event.handle)->sink, bytes, length, Origin::kArena) >= 0);
    }
  }
  for (const Flow &flow : flows) {
    close(flow.sourcePeer);
    close(flow.sinkPeer);
  }
}

TABLE_TEST(lanes_tls, "a TLS connection changes its lane in its handshake and after it") {
  World world(ops, 4096);
  Loop *loop = world.streams->loop;
  int peer;
  const int handle = world.openReading(&peer);
  CHECK_EQUAL(streamTlsStart(world.streams, handle, fakeTlsNew(), nullptr, 0), 0);
  const auto change = [loop] {
    if (loop->hands) loop->duty.on = !loop->duty.on;
  };
  std::string hello;
  for (int i = 0; hello != "H"; i++) {
    CHECK(i < 100);
    change();
    world.turn();
    hello += get(peer);
  }
  change();
  put(peer, "H");
  CHECK_EQUAL(world.until(kTls, handle).result, 0);
  for (int i = 0; i < 20; i++) {
    const std::string text = "text " + std::to_string(i);
    put(peer, fakeTlsRecord(text));
    change();
    CHECK_EQUAL(world.receive(handle, text.size()), text);
    world.send(handle, text);
    change();
    for (int turns = 0; turns < 3; turns++) world.turn();
    CHECK_EQUAL(get(peer), fakeTlsRecord(text));
  }
  close(peer);
}
