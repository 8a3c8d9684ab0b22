/*
 * The libuv backend's own state, shared by its three files: loop/backend_epoll.cc (life, the wait, signals, wake-ups),
 * loop/stream.cc (what happens on handles) and loop/uvside.cc (name lookups). Nobody else includes this.
 *
 * the kernel tells when a descriptor is ready; this backend then does the receiving, sending and accepting, so that what
 * TypeScript sees are completions.
 */
#pragma once

#include <uv.h>

#include <unordered_map>
#include <vector>

#include "bytes.h"
#include "loop/loop.h"
#include "tls/tls.h"

namespace tsb {

struct UvLoop;

enum class SlotKind : uint8_t {
  kFree,     // in the free list
  kClosing,  // until the next wait, so that its number is not reused in this turn
  kStream,
  kListener,
  kWatch,
};

/** One handle. Never moves: the kernel keeps its address. */
struct Slot {
  UvLoop *loop;
  int handle;
  int fd;
  SlotKind kind;
  /** what the kernel watches now (epoll's bits); 0 = not registered */
  uint32_t armed;
  /** the kernel said that there is something to receive, and we have not seen the end of it */
  bool readable;
  /** and that the stream ends behind it, or broke: no further edge will say so */
  bool ending;
  bool reading;  // for a listener: accepting
  bool connecting;
  bool unixListener;
  /** in `pending`, for one of the three reasons that follow */
  bool pending;
  /** bytes that the socket will not announce again: kept ones, or inside TLS */
  bool pendingKept;
  /** -errno of a call that failed behind the caller's back, to be told as the handle's next record; 0 = none */
  int failed;
  /** receiving was stopped and started: the kept bytes come again, with or without more */
  bool redeliver;
  /** most bytes of the next receive, 0 = no limit */
  size_t recvLimit;
  /** a connect that ended at once */
  bool pendingConnect;
  int connectResult;
  /** null on a plain connection */
  TlsConn *tls;
  /** its handshake is under way: what arrives belongs to that, whether reading is on or not */
  bool shaking;
  /** turn of the last RECV or READABLE record: one a turn, because kept bytes go in front of the *next* delivery */
  uint32_t lastTurn;
  Bytes kept;
  Bytes unsent;
};

struct Lookup {
  uv_getaddrinfo_t request;
  UvLoop *loop;
  int id;
  addrinfo *found;
  bool running;
  bool cancelled;
};

constexpr int kSignalsMax = 65;

struct UvLoop : Loop {
  uv_loop_t uv;
  /** never sent: it keeps libuv's loop alive, so that its set is registered with the kernel before a name is looked up */
  uv_async_t alive;
  Turn *turn;
  int recvMax;
  /** part of the arena that ioDeliverPending leaves to the events of the turn */
  size_t reserved;
  uint32_t turnNumber;
  bool breakAsked;
  /** what waits: sockets, the wake-up descriptor, and libuv's own set as one member */
  int epollFd;
  int wakeFd;
  /** slots closed since the last wait */
  std::vector<int> closing;
  uv_signal_t *signals[kSignalsMax];
  /** by handle; index 0 stays empty so that a zeroed field is never somebody's handle */
  std::vector<Slot *> slots;
  std::vector<int> freeSlots;
  /** handles whose next record does not wait for the kernel */
  std::vector<int> pending;
  /** scratch of ioDeliverPending */
  std::vector<int> delivering;
  std::vector<int> served;
  std::unordered_map<int, Lookup *> lookups;
  int lastLookup;
  TlsPool tlsPool;
};

inline UvLoop *uvLoop(Loop *loop) { return static_cast<UvLoop *>(loop); }

inline bool slotLive(const Slot *slot) { return slot->kind != SlotKind::kFree && slot->kind != SlotKind::kClosing; }

/** The slot of a live handle, or null. */
inline Slot *slotOf(Loop *loop, int handle) {
  UvLoop *l = uvLoop(loop);
  if (handle <= 0 || static_cast<size_t>(handle) >= l->slots.size()) return nullptr;
  Slot *slot = l->slots[handle];
  return slotLive(slot) ? slot : nullptr;
}

/* loop/stream.cc */
int ioOpen(Loop *loop, int fd);
int ioConnect(Loop *loop, int fd, const sockaddr *addr, socklen_t length);
int ioListenOpen(Loop *loop, int fd);
int ioListenStart(Loop *loop, int handle, bool on);
int ioWatchFd(Loop *loop, int fd);
int ioFdOf(Loop *loop, int handle);
int ioClose(Loop *loop, int handle);
int ioDetach(Loop *loop, int handle);
int ioRecvStart(Loop *loop, int handle);
int ioRecvStop(Loop *loop, int handle);
int ioEnded(Loop *loop, int handle);
void ioRecvStopAll(Loop *loop, int except, void (*unsent)(void *context, int handle), void *context);
int ioRecvLimit(Loop *loop, int handle, int most);
int ioKeep(Loop *loop, int handle, const uint8_t *bytes, size_t length);
int ioKeptLength(Loop *loop, int handle);
int ioTakeKept(Loop *loop, int handle);
int ioSend(Loop *loop, int handle, const uint8_t *bytes, size_t length);
int ioUnsent(Loop *loop, int handle);
int ioTakeUnsent(Loop *loop, int handle, uint8_t *into);
int ioTlsStart(Loop *loop, int handle, TlsConn *conn, const uint8_t *bytes, size_t length);
TlsConn *ioTlsOf(Loop *loop, int handle);
/** Adds the records that need no kernel event; what finds no room stays pending. */
void ioDeliverPending(UvLoop *l);
/** What epoll said of one slot. */
void ioEvent(Slot *slot, uint32_t events);
/** Slots closed in the last turn may be used again. */
void ioReuse(UvLoop *l);

/* loop/uvside.cc */
int lookupStart(Loop *loop, const char *name);
const addrinfo *lookupFound(Loop *loop, int id);
void lookupEnd(Loop *loop, int id);

}  // namespace tsb
