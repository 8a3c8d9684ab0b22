/*
 * The libuv backend: what happens on handles. TypeScript's calls change what a slot wants; ioEvent does the receiving,
 * sending, connecting and accepting when the descriptor is ready, and adds the records.
 *
 * System calls are what a pooler pays for, and so is what the kernel does for each event. A plain connection is
 * therefore registered once, for edges: stopping, starting and blocked sends cost no call, and the kernel does not look
 * again at descriptors it has told of. The price is that an edge must be remembered (readable, ending) until the socket
 * is seen empty: nothing announces it twice.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <new>

#include "loop/stream.h"
#include "plainio.h"

namespace tsb {

static void setPending(Slot *slot);
static bool tlsReadable(const Slot *slot);

/* ---- slots ---- */

static int slotNew(UvLoop *l, int fd, SlotKind kind) {
  if (fd < 0) return -EBADF;
  Slot *slot;
  if (!l->freeSlots.empty()) {
    slot = l->slots[l->freeSlots.back()];
  } else {
    if (l->slots.size() > static_cast<size_t>(kHandlesMax)) return -EMFILE;
    slot = new (std::nothrow) Slot();
    if (!slot) return -ENOMEM;
    slot->handle = static_cast<int>(l->slots.size());
    slot->kind = SlotKind::kFree;
    slot->loop = l;
    l->slots.push_back(slot);
    l->freeSlots.push_back(slot->handle);
  }
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return -errno;
  if (!(flags & O_NONBLOCK) && fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) return -errno;
  l->freeSlots.pop_back();
  slot->fd = fd;
  slot->kind = kind;
  slot->armed = 0;
  slot->readable = false;
  slot->ending = false;
  slot->reading = false;
  slot->connecting = false;
  slot->unixListener = false;
  slot->pending = false;
  slot->pendingKept = false;
  slot->failed = 0;
  slot->redeliver = false;
  slot->recvLimit = 0;
  slot->pendingConnect = false;
  slot->connectResult = 0;
  slot->tls = nullptr;
  slot->shaking = false;
  slot->lastTurn = l->turnNumber - 1;
  return slot->handle;
}

void ioReuse(UvLoop *l) {
  for (const int handle : l->closing) {
    l->slots[handle]->kind = SlotKind::kFree;
    l->freeSlots.push_back(handle);
  }
  l->closing.clear();
}

/* Takes the descriptor out of epoll by name: it may live on in another process, and then closing it here does not. */
static int forget(Slot *slot) {
  const int fd = slot->fd;
  if (slot->armed) epoll_ctl(slot->loop->epollFd, EPOLL_CTL_DEL, fd, nullptr);
  slot->loop->closing.push_back(slot->handle);
  slot->kind = SlotKind::kClosing;
  slot->fd = -1;
  tlsConnFree(slot->tls);
  slot->tls = nullptr;
  slot->kept.clear();
  slot->unsent.clear();
  return fd;
}

/*
 * A plain stream is registered once, for edges of both directions, and never again: stopping, starting and blocked
 * sends cost no call. TLS does not say when it has drained its socket, so such a stream is watched by level, like
 * listeners are.
 */
static uint32_t wantedEvents(const Slot *slot) {
  if (slot->kind == SlotKind::kStream && !slot->tls) return EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  const bool input = slot->kind == SlotKind::kStream ? tlsReadable(slot) : slot->reading;
  return (input ? EPOLLIN : 0u) | (slot->unsent.length > 0 ? EPOLLOUT : 0u);
}

/* Tells the kernel what is wanted, when it has to know. Returns 0 or -errno. */
static int watch(Slot *slot) {
  const uint32_t wanted = wantedEvents(slot);
  if (wanted == slot->armed) return 0;
  epoll_event event = {wanted, {slot}};
  const int op = wanted == 0 ? EPOLL_CTL_DEL : slot->armed == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
  // what cannot be removed is not there, and nothing is lost
  if (epoll_ctl(slot->loop->epollFd, op, slot->fd, &event) < 0 && wanted != 0) return -errno;
  slot->armed = wanted;
  return 0;
}

static void setPending(Slot *slot) {
  if (slot->pending) return;
  slot->pending = true;
  slot->loop->pending.push_back(slot->handle);
}

/** The next record of the handle is that error: without it the connection would be mute, or the listener deaf, for ever. */
static void failLater(Slot *slot, int err) {
  setPending(slot);
  slot->failed = err;
}

static void arm(Slot *slot) {
  const int err = watch(slot);
  if (err < 0) failLater(slot, err);
}

/* ---- receiving ---- */

/* The end of a stream is told once: reading stops by itself. */
static void endOfStream(Slot *slot, int result) {
  slot->reading = false;
  slot->readable = false;
  slot->lastTurn = slot->loop->turnNumber;
  slot->loop->turn->add(kRecv, slot->handle, result, 0);
}

/**
 * Whether a TLS connection may be decrypted for. What a peer sends can make OpenSSL answer (key updates, alerts): a peer
 * that does not take those answers is not read from, or they would pile up here without end.
 */
static bool tlsReadable(const Slot *slot) {
  return (slot->shaking || slot->reading) && slot->unsent.length <= kTlsUnsentMax;
}

/** True when the next delivery, or the next step of a handshake, does not depend on the socket. */
static bool tlsDue(const Slot *slot) { return tlsReadable(slot) && tlsHasInput(slot->tls); }

static void stepHandshake(Slot *slot) {
  const int res = tlsHandshake(slot->tls);
  if (res == 0) return;
  slot->shaking = false;
  if (res < 0) slot->reading = false;
  slot->loop->turn->add(kTls, slot->handle, res < 0 ? res : 0, 0);
}

/** What is left of the arena for a stream that is to receive now. */
static size_t recvRoom(const UvLoop *l) {
  const size_t room = l->turn->recvRoom();
  return room > l->reserved ? room - l->reserved : 0;
}

/* As receive(), with what is decrypted. Bytes that stay inside TLS are due in the next turn. */
static bool receiveTls(Slot *slot, bool redeliver) {
  UvLoop *l = slot->loop;
  Turn *turn = l->turn;
  if (turn->full()) return false;
  if (!redeliver && !tlsReadable(slot)) return true;
  if (slot->shaking) {
    stepHandshake(slot);
    return true;
  }
  const size_t kept = slot->kept.length;
  if (slot->lastTurn == l->turnNumber) return false;
  if (kept > kKeptMax) {
    endOfStream(slot, -EMSGSIZE);
    return true;
  }
  const size_t recvMax = static_cast<size_t>(l->recvMax);
  const size_t room = recvRoom(l);
  if (room < kept + (recvMax < kRecvRoomLeast ? recvMax : kRecvRoomLeast)) return false;
  uint8_t *place = turn->recvPlace();
  ssize_t n = tlsRead(slot->tls, place + kept, room - kept < recvMax ? room - kept : recvMax);
  if (n <= 0) {
    if (!redeliver || kept == 0) {
      if (n != kTlsNothing) endOfStream(slot, static_cast<int>(n));
      return true;
    }
    // an end is told after the kept bytes
    if (n != kTlsNothing) slot->tls->endDue = true;
    n = 0;
  }
  if (kept > 0) {
    memcpy(place, slot->kept.first(), kept);
    slot->kept.clear();
  }
  const int length = static_cast<int>(kept + static_cast<size_t>(n));
  slot->lastTurn = l->turnNumber;
  turn->add(kRecv, slot->handle, length, turn->recvTake(static_cast<size_t>(length)));
  return true;
}

/*
 * One receive into the arena, behind the kept bytes. `redeliver`: the kept bytes are due even when nothing arrives.
 * Returns false when there was no room and the event must be left for the next turn.
 */
static bool receive(Slot *slot, bool redeliver) {
  if (slot->tls) return receiveTls(slot, redeliver);
  UvLoop *l = slot->loop;
  Turn *turn = l->turn;
  const size_t kept = slot->kept.length;
  const size_t recvMax = static_cast<size_t>(l->recvMax);
  if (slot->lastTurn == l->turnNumber || turn->full()) return false;
  if (kept > kKeptMax) {
    endOfStream(slot, -EMSGSIZE);
    return true;
  }
  const size_t room = recvRoom(l);
  if (room < kept + (recvMax < kRecvRoomLeast ? recvMax : kRecvRoomLeast)) return false;
  uint8_t *place = turn->recvPlace();
  size_t most = room - kept < recvMax ? room - kept : recvMax;
  if (slot->recvLimit > 0 && slot->recvLimit < most) most = slot->recvLimit;
  ssize_t n = recvRetry(slot->fd, place + kept, most);
  // less than asked for: the socket is empty, and the next byte is an edge
  if (n > 0 && static_cast<size_t>(n) < most && !slot->ending) slot->readable = false;
  if (n <= 0) {
    const int result = n < 0 ? -errno : 0;
    const bool nothing = result == -EAGAIN || result == -EWOULDBLOCK;
    if (nothing) slot->readable = slot->ending = false;
    if (!redeliver) {
      if (!nothing) endOfStream(slot, result);
      return true;
    }
    n = 0;  // an end or an error is still there next turn
  }
  if (n > 0) slot->recvLimit = 0;
  if (kept > 0) {
    memcpy(place, slot->kept.first(), kept);
    slot->kept.clear();
  }
  const int length = static_cast<int>(kept + static_cast<size_t>(n));
  slot->lastTurn = l->turnNumber;
  turn->add(kRecv, slot->handle, length, turn->recvTake(static_cast<size_t>(length)));
  return true;
}

/* ---- sending ---- */

static void flushUnsent(Slot *slot) {
  const ssize_t n = sendRetry(slot->fd, slot->unsent.first(), slot->unsent.length);
  if (n < 0) {
    const int err = errno;
    if (wouldBlock(err)) return;
    slot->unsent.clear();
    slot->loop->turn->add(kDrain, slot->handle, -err, 0);
    return;
  }
  slot->unsent.drop(static_cast<size_t>(n));
  if (slot->unsent.length == 0) slot->loop->turn->add(kDrain, slot->handle, 0, 0);
}

/* Tells of a failure by the record that the caller waits for. A stream that nothing is expected of keeps it for later. */
static bool tellFailure(Slot *slot) {
  Turn *turn = slot->loop->turn;
  if (turn->full()) return false;
  const int err = slot->failed;
  if (slot->kind == SlotKind::kListener) {
    turn->add(kAccept, slot->handle, err, slot->unixListener ? 1 : 0);
  } else if (slot->connecting) {
    slot->connecting = slot->pendingConnect = false;
    turn->add(kConnect, slot->handle, err, 0);
  } else if (slot->unsent.length > 0) {
    slot->unsent.clear();
    turn->add(kDrain, slot->handle, err, 0);
  } else if (slot->shaking) {
    slot->shaking = slot->reading = false;
    turn->add(kTls, slot->handle, err, 0);
  } else if (slot->reading) {
    endOfStream(slot, err);
  } else {
    return true;
  }
  slot->failed = 0;
  return true;
}

/* ---- accepting, connecting ---- */

static void acceptSome(Slot *slot) {
  Turn *turn = slot->loop->turn;
  bool accepted = false;
  for (int i = 0; i < kAcceptMax && !turn->full(); i++) {
    const int fd = accept4(slot->fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      turn->add(kAccept, slot->handle, fd, slot->unixListener ? 1 : 0);
      accepted = true;
      continue;
    }
    const int err = errno;
    // the peer gave up while it was queued: the original does not speak of it either
    if (err == EINTR || err == ECONNABORTED) continue;
    // behind a success nothing is said yet: with its last descriptor used up, the kernel answers EMFILE even when nobody
    // waits, and if somebody does, the next turn says it
    if (!accepted && !wouldBlock(err)) turn->add(kAccept, slot->handle, -err, slot->unixListener ? 1 : 0);
    return;
  }
}

static void connected(Slot *slot) {
  int err = 0;
  socklen_t length = sizeof(err);
  if (getsockopt(slot->fd, SOL_SOCKET, SO_ERROR, &err, &length) < 0) err = errno;
  slot->connecting = false;
  slot->loop->turn->add(kConnect, slot->handle, -err, 0);
}

/* ---- events ---- */

/** True when a delivery is due that no event will announce. */
static bool due(const Slot *slot) {
  if (slot->tls) return tlsDue(slot);
  return slot->reading && slot->readable && !slot->connecting;
}

static void onStream(Slot *slot, uint32_t events) {
  const uint32_t broken = EPOLLHUP | EPOLLERR;
  if (events & (EPOLLIN | EPOLLRDHUP | broken)) slot->readable = true;
  if (events & (EPOLLRDHUP | broken)) slot->ending = true;
  if (slot->connecting) {
    if (slot->pendingConnect || !(events & (EPOLLOUT | broken))) return;
    connected(slot);
  }
  if ((events & (EPOLLOUT | broken)) && slot->unsent.length > 0) flushUnsent(slot);
  const bool readNow = slot->tls ? (events & ~static_cast<uint32_t>(EPOLLOUT)) != 0 : slot->readable;
  // one that is pending has its place in the queue already
  if (readNow && !slot->pendingKept && (slot->reading || slot->shaking)) receive(slot, false);
  if (!slot->pendingKept && due(slot)) {
    setPending(slot);
    slot->pendingKept = true;
  }
}

void ioEvent(Slot *slot, uint32_t events) {
  Turn *turn = slot->loop->turn;
  switch (slot->kind) {
    case SlotKind::kStream:
      onStream(slot, events);
      break;
    case SlotKind::kListener:
      if (slot->reading && !turn->full()) acceptSome(slot);
      break;
    case SlotKind::kWatch:
      if (slot->lastTurn == slot->loop->turnNumber || turn->full()) break;
      slot->lastTurn = slot->loop->turnNumber;
      turn->add(kReadable, slot->handle, 0, 0);
      break;
    case SlotKind::kFree:
    case SlotKind::kClosing:
      return;
  }
  arm(slot);
}

/* The next record of a pending slot. Returns false when the turn has no room for it. */
static bool deliver(Slot *slot) {
  if (slot->failed != 0) return tellFailure(slot);
  if (slot->pendingConnect) {
    if (slot->loop->turn->full()) return false;
    slot->pendingConnect = false;
    slot->connecting = false;
    slot->loop->turn->add(kConnect, slot->handle, slot->connectResult, 0);
    if (slot->unsent.length > 0) flushUnsent(slot);
    arm(slot);
  } else if (slot->pendingKept) {
    // stopped again, or taken away, since
    const bool again = slot->reading && slot->redeliver && slot->kept.length > 0;
    if ((again || slot->shaking || due(slot)) && !receive(slot, again)) return false;
    slot->redeliver = false;
    slot->pendingKept = due(slot);
    arm(slot);
  }
  return true;
}

/*
 * Streams that found no room in the arena come first in the next turn, those that were served and have more come behind
 * them: however many streams are saturated, each gets its share.
 */
void ioDeliverPending(UvLoop *l) {
  l->reserved = kEventsRoom;
  l->delivering.swap(l->pending);
  for (const int handle : l->delivering) {
    Slot *slot = l->slots[handle];
    if (!slotLive(slot)) continue;
    slot->pending = false;
    if (!deliver(slot))
      setPending(slot);
    else if (slot->pendingKept)
      l->served.push_back(handle);
  }
  l->delivering.clear();
  l->reserved = 0;
  for (const int handle : l->served) setPending(l->slots[handle]);
  l->served.clear();
}

/* ---- calls ---- */

int ioOpen(Loop *loop, int fd) { return slotNew(uvLoop(loop), fd, SlotKind::kStream); }

int ioConnect(Loop *loop, int fd, const sockaddr *addr, socklen_t length) {
  if (fd < 0) fd = socket(addr->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  const int handle = slotNew(uvLoop(loop), fd, SlotKind::kStream);
  if (handle < 0) {
    close(fd);
    return handle;
  }
  Slot *slot = slotOf(loop, handle);
  int err = 0;
  if (connect(fd, addr, length) < 0) err = errno;
  if (err == EINPROGRESS || err == EINTR) {
    slot->connecting = true;
    arm(slot);
  } else {
    setPending(slot);
    slot->connecting = true;
    slot->pendingConnect = true;
    slot->connectResult = -err;
  }
  return handle;
}

int ioListenOpen(Loop *loop, int fd) {
  sockaddr_storage addr;
  socklen_t length = sizeof(addr);
  if (getsockname(fd, reinterpret_cast<sockaddr *>(&addr), &length) < 0) return -errno;
  const int handle = slotNew(uvLoop(loop), fd, SlotKind::kListener);
  if (handle > 0) slotOf(loop, handle)->unixListener = addr.ss_family == AF_UNIX;
  return handle;
}

int ioListenStart(Loop *loop, int handle, bool on) {
  Slot *slot = slotOf(loop, handle);
  if (!slot || slot->kind != SlotKind::kListener) return -EBADF;
  slot->reading = on;
  if (on) arm(slot);
  return 0;
}

int ioWatchFd(Loop *loop, int fd) {
  const int handle = slotNew(uvLoop(loop), fd, SlotKind::kWatch);
  if (handle < 0) return handle;
  Slot *slot = slotOf(loop, handle);
  slot->reading = true;
  const int err = watch(slot);
  if (err < 0) forget(slot);
  return err < 0 ? err : handle;
}

int ioFdOf(Loop *loop, int handle) {
  const Slot *slot = slotOf(loop, handle);
  return slot ? slot->fd : -EBADF;
}

int ioClose(Loop *loop, int handle) {
  Slot *slot = slotOf(loop, handle);
  if (!slot) return -EBADF;
  const bool owned = slot->kind != SlotKind::kWatch;
  if (slot->tls) tlsShutdown(slot->tls);
  const int fd = forget(slot);
  if (owned) close(fd);
  return 0;
}

int ioDetach(Loop *loop, int handle) {
  Slot *slot = slotOf(loop, handle);
  return slot ? forget(slot) : -EBADF;
}

int ioRecvStart(Loop *loop, int handle) {
  Slot *slot = slotOf(loop, handle);
  if (!slot || slot->kind != SlotKind::kStream) return -EBADF;
  if (slot->reading) return 0;
  slot->reading = true;
  if (slot->failed != 0) setPending(slot);
  slot->redeliver = slot->kept.length > 0;
  if ((slot->redeliver || due(slot)) && !slot->pendingKept) {
    setPending(slot);
    slot->pendingKept = true;
  }
  arm(slot);
  return 0;
}

int ioRecvStop(Loop *loop, int handle) {
  Slot *slot = slotOf(loop, handle);
  if (!slot || slot->kind != SlotKind::kStream) return -EBADF;
  slot->reading = false;
  return 0;
}

/* The edge of a plain stream's end is remembered; one with TLS is not watched while nothing is received from it. */
int ioEnded(Loop *loop, int handle) {
  const Slot *slot = slotOf(loop, handle);
  if (!slot || slot->kind != SlotKind::kStream) return -EBADF;
  if (!slot->tls && !slot->ending) return 0;
  uint8_t next;
  ssize_t n;
  do n = recv(slot->fd, &next, 1, MSG_PEEK | MSG_DONTWAIT);
  while (n < 0 && errno == EINTR);
  return n == 0 || (n < 0 && !wouldBlock(errno)) ? 1 : 0;
}

void ioRecvStopAll(Loop *loop, int except, void (*unsent)(void *context, int handle), void *context) {
  for (Slot *slot : uvLoop(loop)->slots) {
    if (!slot || slot->kind != SlotKind::kStream || slot->handle == except) continue;
    slot->reading = false;
    if (slot->unsent.length > 0) unsent(context, slot->handle);
  }
}

int ioRecvLimit(Loop *loop, int handle, int most) {
  Slot *slot = slotOf(loop, handle);
  if (!slot || slot->kind != SlotKind::kStream) return -EBADF;
  slot->recvLimit = most > 0 ? static_cast<size_t>(most) : 0;
  return 0;
}

int ioKeep(Loop *loop, int handle, const uint8_t *bytes, size_t length) {
  Slot *slot = slotOf(loop, handle);
  if (!slot || slot->kind != SlotKind::kStream) return -EBADF;
  if (slot->kept.append(bytes, length)) return 0;
  // bytes are lost: whatever came behind them would be taken for something else
  failLater(slot, -ENOMEM);
  return -ENOMEM;
}

int ioKeptLength(Loop *loop, int handle) {
  const Slot *slot = slotOf(loop, handle);
  return slot ? static_cast<int>(slot->kept.length) : -EBADF;
}

int ioTakeKept(Loop *loop, int handle) {
  Slot *slot = slotOf(loop, handle);
  if (!slot) return -EBADF;
  if (slot->kept.length == 0) return -1;
  const int offset = slot->loop->turn->sideTake(slot->kept.length);
  if (offset < 0) return -ENOBUFS;
  memcpy(slot->loop->turn->arena + offset, slot->kept.first(), slot->kept.length);
  slot->kept.clear();
  return offset;
}

/* Records that are made are sent in their order: what the socket does not take is queued encrypted. */
static int sendTls(Slot *slot, const uint8_t *bytes, size_t length) {
  if (slot->unsent.length > kUnsentMax || length > kUnsentMax - slot->unsent.length) return -ENOBUFS;
  const int err = tlsWrite(slot->tls, bytes, length);
  if (err < 0) return err;
  if (slot->unsent.length > 0) arm(slot);
  return static_cast<int>(slot->unsent.length);
}

int ioSend(Loop *loop, int handle, const uint8_t *bytes, size_t length) {
  Slot *slot = slotOf(loop, handle);
  if (!slot || slot->kind != SlotKind::kStream) return -EBADF;
  if (length == 0) return static_cast<int>(slot->unsent.length);
  if (slot->tls) return sendTls(slot, bytes, length);
  if (slot->unsent.length == 0 && !slot->connecting) {
    const ssize_t n = sendRetry(slot->fd, bytes, length);
    if (n < 0 && !wouldBlock(errno)) return -errno;
    if (n > 0) {
      bytes += n;
      length -= static_cast<size_t>(n);
    }
    if (length == 0) return 0;
  }
  if (length > kUnsentMax - slot->unsent.length) return -ENOBUFS;
  if (!slot->unsent.append(bytes, length)) return -ENOMEM;
  arm(slot);
  return static_cast<int>(slot->unsent.length);
}

int ioUnsent(Loop *loop, int handle) {
  const Slot *slot = slotOf(loop, handle);
  return slot ? static_cast<int>(slot->unsent.length) : -EBADF;
}

int ioTakeUnsent(Loop *loop, int handle, uint8_t *into) {
  Slot *slot = slotOf(loop, handle);
  if (!slot) return -EBADF;
  const size_t length = slot->unsent.length;
  if (length > 0) memcpy(into, slot->unsent.first(), length);
  slot->unsent.clear();
  return static_cast<int>(length);
}

int ioTlsStart(Loop *loop, int handle, TlsConn *conn, const uint8_t *bytes, size_t length) {
  Slot *slot = slotOf(loop, handle);
  const bool possible = slot && slot->kind == SlotKind::kStream && !slot->tls && !slot->connecting;
  if (possible) tlsConnAttach(conn, slot->fd, &slot->unsent, &slot->loop->tlsPool);
  if (!possible || !tlsConnPrefix(conn, bytes, length)) {
    tlsConnFree(conn);
    return possible ? -EMSGSIZE : -EBADF;
  }
  slot->tls = conn;
  slot->shaking = true;
  // the first step is taken in the next turn, so that its result is a record like any other
  setPending(slot);
  slot->pendingKept = true;
  return 0;
}

TlsConn *ioTlsOf(Loop *loop, int handle) {
  const Slot *slot = slotOf(loop, handle);
  return slot ? slot->tls : nullptr;
}

}  // namespace tsb
