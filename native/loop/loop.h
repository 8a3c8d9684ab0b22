/*
 * What an event loop backend must offer, and the limits that all backends share. bind/loop.cc calls through the table
 * and knows no backend; a backend knows nothing of JavaScript. The shape is that of completions: a backend receives on
 * its own and reports where the bytes lie, so that readiness (libuv) and completion (io_uring) fit behind it equally.
 *
 * Everywhere: a handle is an index > 0, errors are -errno, and an unknown handle is -EBADF, never a crash.
 */
#pragma once

#include <sys/socket.h>

#include <cstddef>
#include <cstdint>

#include "loop/turn.h"

struct addrinfo;

namespace tsb {

struct TlsConn;

/** Most handles of one loop; far above any descriptor limit in practice. */
constexpr int kHandlesMax = 1 << 20;
/** Bounds of recvMax, the most bytes of one receive. */
constexpr int kRecvMaxLeast = 1024;
constexpr int kRecvMaxMost = 1 << 20;
/** With less arena left than this (or recvMax, when that is smaller), a receive waits for the next turn: a short
 *  receive would cost a system call for little. */
constexpr size_t kRecvRoomLeast = 16 * 1024;
/** Of the arena, what streams that always have more must leave to those that have something now: a small query does not
 *  queue behind large results. */
constexpr size_t kEventsRoom = kRecvSpace / 4;
/** Most kept bytes that are delivered again; TypeScript's own packet limits are lower. Beyond it the next delivery is
 *  -EMSGSIZE. */
constexpr size_t kKeptMax = 1 << 20;
/** Most unsent bytes of one handle; beyond it send() is -ENOBUFS. TypeScript stops its sources long before. */
constexpr size_t kUnsentMax = 256u << 20;
/** With more unsent bytes than this, a TLS connection is not decrypted for: its peer could make OpenSSL write without end. */
constexpr size_t kTlsUnsentMax = 256 * 1024;
/** Connections accepted from one listener in one turn, so that a flood of them does not starve the others. */
constexpr int kAcceptMax = 128;
/** Name lookups under way or not fetched yet. */
constexpr size_t kLookupsMax = 65536;

struct LoopOps;

/** What all backends' loops have in front. */
struct Loop {
  const LoopOps *ops;
};

struct LoopOps {
  const char *name;

  /** Returns the loop, or null with *err = -errno. `turn` is borrowed and outlives the loop. */
  Loop *(*create)(Turn *turn, int recvMax, int *err);
  /** Closes every descriptor the loop owns. */
  void (*destroy)(Loop *loop);

  /** One turn: fills the ring. timeoutMs: -1 no limit, 0 do not block. Returns the number of records. */
  int (*wait)(Loop *loop, int timeoutMs);
  void (*breakWait)(Loop *loop);
  int (*wakeFd)(Loop *loop);
  int (*signalStart)(Loop *loop, int signum);

  int (*open)(Loop *loop, int fd);
  int (*connect)(Loop *loop, int fd, const sockaddr *addr, socklen_t length);
  int (*listenOpen)(Loop *loop, int fd);
  int (*listenStart)(Loop *loop, int handle, bool on);
  int (*watchFd)(Loop *loop, int fd);
  int (*fdOf)(Loop *loop, int handle);
  int (*close)(Loop *loop, int handle);
  /** As close, but returns the descriptor, open. */
  int (*detach)(Loop *loop, int handle);

  int (*recvStart)(Loop *loop, int handle);
  int (*recvStop)(Loop *loop, int handle);
  /** 1 when a stream that is not received from has ended or broken, with nothing to receive before that; else 0. */
  int (*ended)(Loop *loop, int handle);
  /** recvStop on every stream but one. Calls `unsent` with the handle of each that has bytes queued. */
  void (*recvStopAll)(Loop *loop, int except, void (*unsent)(void *context, int handle), void *context);
  /** The next receive that brings something brings at most this; 0 = no limit. Of plain connections only. */
  int (*recvLimit)(Loop *loop, int handle, int most);
  int (*keep)(Loop *loop, int handle, const uint8_t *bytes, size_t length);
  int (*keptLength)(Loop *loop, int handle);
  /** Offset in the arena, -1 when nothing is kept, -ENOBUFS when the turn's side space is used up. */
  int (*takeKept)(Loop *loop, int handle);

  /** Returns the bytes that are queued now. */
  int (*send)(Loop *loop, int handle, const uint8_t *bytes, size_t length);
  int (*unsent)(Loop *loop, int handle);
  /** Moves the unsent bytes into `into`, which holds unsent() bytes. */
  int (*takeUnsent)(Loop *loop, int handle, uint8_t *into);

  /** Puts TLS on a stream and begins the handshake with the bytes given, which were received before; kTls follows. The
   *  connection is the loop's from then on, whatever is returned. */
  int (*tlsStart)(Loop *loop, int handle, TlsConn *conn, const uint8_t *bytes, size_t length);
  /** The TLS connection of a handle, or null. */
  TlsConn *(*tlsOf)(Loop *loop, int handle);

  /** Returns a request id > 0. A name that cannot even be asked for is reported as a record too. */
  int (*resolve)(Loop *loop, const char *name);
  /** The addresses of a finished request, or null. They live until resolveEnd. */
  const addrinfo *(*resolved)(Loop *loop, int id);
  /** Forgets a request, finished or not. */
  void (*resolveEnd)(Loop *loop, int id);
};

extern const LoopOps kLoopUv;

}  // namespace tsb
