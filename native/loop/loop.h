/*
 * The contract between an event loop backend and everything else. A backend moves bytes between the kernel and memory;
 * stream.cc and handles.cc keep what a handle remembers and make the records; uvside.cc has signals and name lookups.
 *
 * The shape is that of completions: a backend receives by itself and reports the bytes, so that readiness (epoll) and
 * completion (io_uring) fit behind the same table. native/loop/stream.h lists what a backend calls in return.
 *
 * What holds for every backend, and is tested on this table (test/native/):
 *   - the bytes of a stream arrive in their order, and leave in their order;
 *   - a stream gives at most one RECV record a turn, because kept bytes go in front of the *next* delivery;
 *   - kept bytes and new ones are contiguous;
 *   - after detach() nothing is reported for the stream;
 *   - a turn has at most kRingRecords records, and none is lost.
 *
 * Everywhere: errors are -errno, and an unknown handle is -EBADF, never a crash.
 */
#pragma once

#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "loop/hands.h"
#include "loop/turn.h"

namespace tsb {

struct Lane;
struct Loop;
struct Stream;
struct Streams;

/** Most handles of one loop; far above any descriptor limit in practice. */
constexpr int kHandlesMax = 1 << 20;
/** Bounds of recvMax, the most bytes of one receive. */
constexpr int kRecvMaxLeast = 1024;
constexpr int kRecvMaxMost = 1 << 20;
/** With less arena left than this (or recvMax, if that is smaller), a receive waits for the next turn: a system call that
 *  brings only a few bytes is not worth its cost. */
constexpr size_t kRecvRoomLeast = 16 * 1024;
/** Saturated streams leave this part of a section (1/4) to the events of the turn, so that a small query does not queue
 *  behind large results. */
constexpr size_t kEventsPart = 4;
/** Most kept bytes that are delivered again; TypeScript's own packet limits are lower. Beyond it the next delivery is
 *  -EMSGSIZE. */
constexpr size_t kKeptMax = 1 << 20;
/** Most unsent bytes of one handle; beyond it send() is -ENOBUFS. TypeScript stops its sources long before. */
constexpr size_t kUnsentMax = 256u << 20;
/** With more unsent answers of OpenSSL than this, a TLS connection is not decrypted for: its peer could make OpenSSL write
 *  without end. */
constexpr size_t kTlsUnsentMax = 256 * 1024;
/**
 * Connections accepted from one listener in one turn. With fewer, a short queue overflows (listen_backlog is 4096 by
 * default, 128 in PgBouncer), and TCP tries again only after a second. Each further one delays the other handles by some
 * 5 usec.
 */
constexpr int kAcceptMax = 256;
/** Name lookups under way or not fetched yet. */
constexpr size_t kLookupsMax = 65536;

struct LoopOptions {
  /** most bytes of one receive, between kRecvMaxLeast and kRecvMaxMost */
  int recvMax;
  /** threads that move bytes, 0 to kHandsMost; 0 = the thread that calls wait() does it */
  int hands;
  /** percent of a CPU that the thread that calls wait() has to use before the hands work; 0 = they always do */
  int handsLoad;
  /** threads for TLS handshakes; 0 = the thread that works on the lane takes the steps */
  int handshakeThreads;
};

/** The operations of a backend. All are called by one thread. */
struct LoopOps {
  const char *name;

  /** Makes the loop, or returns null with *err = -errno. The turn outlives the loop. */
  Loop *(*create)(Turn *turn, const LoopOptions &options, int *err);
  /** Frees the loop. All streams have been detached. */
  void (*destroy)(Loop *loop);

  /** The stream belongs to the loop from now on and gets its lane, for good. Nothing is received before receive().
   *  Returns 0 or -errno. */
  int (*attach)(Loop *loop, Stream *stream);
  /** Ends that: nothing is reported for the stream any more. `stays`: the descriptor will be used on, here or by another
   *  process, so nothing of it may be under way in the kernel; else the caller closes it. */
  void (*detach)(Loop *loop, Stream *stream, bool stays);

  /** Starts to connect a stream; streamConnected() follows, at the earliest in the next wait(). */
  void (*connect)(Loop *loop, Stream *stream, const sockaddr *addr, socklen_t length);
  /**
   * Says whether input is wanted from now on: streamReceived() at most once a turn for a connection, streamAccepted() for
   * a listener, streamReadable() for a watch. Returns 0, or -errno when the kernel does not watch such a descriptor.
   */
  int (*receive)(Loop *loop, Stream *stream, bool on);
  /** The kernel took less than was to be sent: sends stream->unsent, in time; streamSent() follows. wait() itself sends
   *  what is in the outbox (outbox.h) before anything that changes the arena. */
  void (*drain)(Loop *loop, Stream *stream);

  /** Ends what is under way in the kernel for a connection after receive(off), in the next wait(), so that quiesce() has
   *  less to do. */
  void (*rest)(Loop *loop, Stream *stream);
  /** Returns when no operation is under way in the kernel: what was received has been reported, what was sent is off
   *  `unsent`. For a handover, after receive(off) for every stream. */
  void (*quiesce)(Loop *loop);
  /** One turn: fills the ring. timeoutMs: -1 no limit, 0 do not block. Returns the number of records. */
  int (*wait)(Loop *loop, int timeoutMs);
};

/**
 * Whether the hands work. Waking them costs more than a small turn, so they begin when the thread that calls wait() uses
 * much of a CPU and its turns have several records. They end when all threads together have used little for some time.
 */
struct Duty {
  bool on;
  /** begin of the period that is being measured, in usec, and the CPU time of the threads then */
  double since;
  double cpuMain;
  double cpuAll;
  /** 0, or since when little is used */
  double calmSince;
  /** turns and their records in the period */
  double turns;
  double records;
};

/** What every backend's loop begins with. */
struct Loop {
  const LoopOps *ops;
  Turn *turn;
  /** the handles; set by streamsNew */
  Streams *streams;
  LoopOptions options;
  /** the next wait, or the present one, does not block */
  bool breakRequested;
  /** the eventfd that other threads write to; watched like any other descriptor */
  int wakeFd;
  /** null without */
  Hands *hands;
  Duty duty;
  /** The first is worked on by the thread that calls wait(), the one at i + 1 by hand i (or by that thread, while no hand
   *  works). Connections belong to the lanes of the hands, if there are any. */
  std::vector<Lane *> lanes;
};

/** After each wait: measures what the threads use, and decides whether the hands work in the next one. */
void dutyUpdate(Loop *loop, double nowUsec);

extern const LoopOps kLoopEpoll;
/** create() fails where the kernel does not allow io_uring. */
extern const LoopOps kLoopUring;
/** Why create() of the io_uring backend failed last in this thread. */
const char *uringRefusal();

}  // namespace tsb
