/*
 * A loop under test, with plain sockets at the other end. turn() is one wait(), and checks on every turn what the table of
 * operations promises of it.
 */
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "check.h"
#include "loop/stream.h"

/** A backend that completes: it receives ahead into memory of its own, and sends in the next turn. */
extern const tsb::LoopOps kLoopEager;

/** Why the kernel refuses io_uring; empty if it does not. */
std::string uringRefused();
/** Runs a test over io_uring with no more than what kernels from 5.19 on can do. */
void uringAsIn519(void (*test)(const tsb::LoopOps *ops));

/** Runs a test over a backend with two hands. */
void withHands(void (*test)(const tsb::LoopOps *ops), const tsb::LoopOps *ops);

/**
 * A test of what the table of operations promises, for each backend, with hands and without, and once more with what io_uring
 * could do in 5.19.
 */
#define TABLE_TEST(id, name) \
  static void id(const tsb::LoopOps *ops); \
  static const check::Register epoll_##id("epoll: " name, [] { id(&tsb::kLoopEpoll); }); \
  static const check::Register epoll_hands_##id("epoll with hands: " name, [] { withHands(id, &tsb::kLoopEpoll); }); \
  static const check::Register uring_##id("io_uring: " name, [] { id(&tsb::kLoopUring); }); \
  static const check::Register uring_hands_##id("io_uring with hands: " name, [] { withHands(id, &tsb::kLoopUring); }); \
  static const check::Register uring519_##id("io_uring as in 5.19: " name, [] { uringAsIn519(id); }); \
  static const check::Register eager_##id("completions: " name, [] { id(&kLoopEager); }); \
  static void id(const tsb::LoopOps *ops)

struct Event {
  tsb::Kind kind;
  int handle;
  int result;
  int offset;
  std::string bytes;
};

struct World {
  tsb::Turn turns;
  tsb::Streams *streams;

  explicit World(const tsb::LoopOps *ops, int recvMax = 65536, int records = tsb::kRingRecords,
                 int handshakeThreads = 0);
  ~World();
  World(const World &) = delete;

  std::vector<Event> turn(int timeoutMs = 0);
  /** The first such event; others of the turns in between are dropped. */
  Event until(tsb::Kind kind, int handle);
  /** All that a handle receives until so many bytes are there. */
  std::string receive(int handle, size_t length);
  /** Checks that some turns bring nothing. */
  void quiet();

  /** A connection of the loop; *peer is the other end. */
  int open(int *peer);
  /** Likewise, reading. */
  int openReading(int *peer);
  int send(int handle, const std::string &bytes);
  void keep(int handle, const std::string &bytes);
  void close(int handle);
  int detach(int handle);

 private:
  void checkPlace(size_t offset, size_t length, size_t *used, std::set<size_t> *buffers) const;
};

/** Both without blocking; what could not be done now is not done. Return the number of bytes, or the bytes. */
size_t put(int fd, const std::string &bytes);
std::string get(int fd);
/** So many bytes that a mistake in their order shows. */
std::string pattern(size_t length, unsigned seed);
