/*
 * A backend that behaves as io_uring does. Bytes arrive in its own memory and in pieces of its own choice. They arrive when the
 * turn has no room for them, and after receiving was stopped. Bytes to send leave in a later turn, a part at a time.
 */
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

#include <deque>
#include <map>

#include "check.h"
#include "plainio.h"
#include "world.h"

using namespace tsb;

/** Pieces of one stream that are received ahead. */
constexpr size_t kAheadMost = 3;
/** Most bytes of one piece, and of one send: odd, so that no boundary falls together with one of the tests. */
constexpr size_t kPieceMost = 5003;
constexpr size_t kSendMost = 7001;

struct Piece {
  std::string bytes;
  /** of the end of the stream: 0 or -errno; else the length of the bytes */
  ssize_t result;
};

struct Ahead {
  bool wanted = false;
  bool ended = false;
  bool connectAsked = false;
  sockaddr_storage addr;
  socklen_t addrLength = 0;
  std::deque<Piece> pieces;
};

struct EagerLoop : Loop {
  Lane lane;
  std::map<Stream *, Ahead> all;
};

static EagerLoop *eager(Loop *loop) { return static_cast<EagerLoop *>(loop); }
static Ahead &aheadOf(Stream *s) { return eager(s->streams->loop)->all.at(s); }

static Loop *create(Turn *turn, const LoopOptions &options, int *) {
  EagerLoop *l = new EagerLoop();
  l->ops = &kLoopEager;
  l->turn = turn;
  l->options = options;
  laneAdd(l, &l->lane);
  return l;
}

static void destroy(Loop *loop) {
  CHECK_EQUAL(eager(loop)->all.size(), 0u);
  delete eager(loop);
}

static int attach(Loop *loop, Stream *s) {
  laneJoin(loop, s, false);
  // it may have ended at any time: this backend does not learn it before the bytes
  s->ending = true;
  eager(loop)->all[s];
  return 0;
}

static void detach(Loop *loop, Stream *s, bool) { eager(loop)->all.erase(s); }

static void connect(Loop *, Stream *s, const sockaddr *addr, socklen_t length) {
  Ahead &ahead = aheadOf(s);
  memcpy(&ahead.addr, addr, length);
  ahead.addrLength = length;
}

static void queueIfDue(Stream *s) {
  if (s->kind != StreamKind::kConnection || !streamWants(s)) return;
  if (streamHasInput(s) || !aheadOf(s).pieces.empty()) streamQueueReceive(s);
}

static int receive(Loop *, Stream *s, bool on) {
  aheadOf(s).wanted = on;
  if (on) queueIfDue(s);
  return 0;
}

static void drain(Loop *, Stream *) {}

/** The kernel's side: receives what is there, whether the turn has room for it or not. */
static void receiveAhead(Stream *s) {
  Ahead &ahead = aheadOf(s);
  while (!ahead.ended && ahead.pieces.size() < kAheadMost) {
    Piece piece = {std::string(kPieceMost, '\0'), 0};
    piece.result = recvRetry(s->fd, reinterpret_cast<uint8_t *>(&piece.bytes[0]), kPieceMost);
    if (piece.result < 0 && wouldBlock(errno)) return;
    if (piece.result < 0) piece.result = -errno;
    ahead.ended = piece.result <= 0;
    piece.bytes.resize(piece.result > 0 ? static_cast<size_t>(piece.result) : 0);
    ahead.pieces.push_back(piece);
  }
}

/** As a completion says it: the kernel took a part of what was queued. */
static void sendQueued(Stream *s) {
  if (s->outbox.count == 0) return;
  iovec parts[kPiecesMost];
  outboxGather(s, parts);
  if (parts[0].iov_len > kSendMost) parts[0].iov_len = kSendMost;
  const ssize_t n = sendRetry(s->fd, static_cast<uint8_t *>(parts[0].iov_base), parts[0].iov_len);
  outboxSent(s, n < 0 ? -errno : n);
}

static void sendAllQueued(EagerLoop *l) {
  outboxSealAll(&l->lane.outbox);
  for (Stream *s : l->lane.outbox.streams) sendQueued(s);
  outboxReset(&l->lane.outbox);
}

/** Reports the first piece, or that there is none. */
static bool reportFirst(Stream *s) {
  if (streamAway(s)) return false;
  std::deque<Piece> &pieces = aheadOf(s).pieces;
  if (pieces.empty() || (s->tls && streamHasInput(s))) return streamReceived(s, nullptr, -EAGAIN);
  const uint8_t *bytes = reinterpret_cast<const uint8_t *>(pieces.front().bytes.data());
  if (!streamReceived(s, bytes, pieces.front().result)) return false;
  pieces.pop_front();
  return true;
}

static void sendSome(Stream *s) {
  if (s->unsent.empty() || s->connecting) return;
  const size_t most = s->unsent.length() < kSendMost ? s->unsent.length() : kSendMost;
  const ssize_t n = sendRetry(s->fd, s->unsent.first(), most);
  if (n >= 0)
    streamSent(s, n);
  else if (!wouldBlock(errno))
    streamSent(s, -errno);
}

static void connectSome(Stream *s, short events) {
  Ahead &ahead = aheadOf(s);
  int err = 0;
  socklen_t length = sizeof(err);
  if (!ahead.connectAsked) {
    ahead.connectAsked = true;
    err = ::connect(s->fd, reinterpret_cast<sockaddr *>(&ahead.addr), ahead.addrLength) < 0 ? errno : 0;
    if (err == EINPROGRESS) return;
  } else if (!(events & (POLLOUT | POLLHUP | POLLERR)) || getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &err, &length) < 0) {
    return;
  }
  streamConnected(s, -err);
}

static void acceptSome(Stream *s) {
  for (int i = 0; i < kAcceptMax && s->reading && !s->lane->section->full(); i++) {
    const int fd = accept4(s->fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    streamAccepted(s, fd);
  }
}

static void onEvents(Stream *s, short events) {
  if (s->kind == StreamKind::kListener) return acceptSome(s);
  if (s->kind == StreamKind::kWatch) return events & POLLIN ? streamReadable(s) : (void)0;
  if (s->connecting) return connectSome(s, events);
  sendSome(s);
  if (aheadOf(s).wanted) receiveAhead(s);
  // a second report in the same turn has to be refused
  if (!s->receiveDue && !aheadOf(s).pieces.empty() && streamWants(s)) reportFirst(s);
  if (!aheadOf(s).pieces.empty() && s->lastTurn == s->lane->turn->number && s->reading && !s->tls) CHECK(!reportFirst(s));
  queueIfDue(s);
}

static bool work(Stream *s) {
  if (!s->receiveDue) return true;
  if ((s->redeliver || streamWants(s)) && !reportFirst(s)) return false;
  s->receiveDue = streamWants(s) && (streamHasInput(s) || !aheadOf(s).pieces.empty());
  return true;
}

static int wait(Loop *loop, int timeoutMs) {
  EagerLoop *l = eager(loop);
  turnBegin(l);
  sendAllQueued(l);
  laneDeliver(&l->lane, work);
  sendAllQueued(l);
  const bool block = timeoutMs != 0 && l->turn->count() == 0 && !l->breakRequested && l->lane.due.empty();
  l->breakRequested = false;
  std::vector<pollfd> fds;
  std::vector<Stream *> streams;
  for (auto &entry : l->all) {
    const bool output = entry.first->connecting || !entry.first->unsent.empty();
    fds.push_back({entry.first->fd, static_cast<short>((entry.second.wanted ? POLLIN : 0) | (output ? POLLOUT : 0)), 0});
    streams.push_back(entry.first);
  }
  poll(fds.data(), fds.size(), block ? (timeoutMs < 0 ? 1000 : timeoutMs) : 0);
  for (size_t i = 0; i < fds.size(); i++)
    if (fds[i].revents != 0 || streams[i]->connecting) onEvents(streams[i], fds[i].revents);
  return l->turn->join();
}

static void rest(Loop *, Stream *) {}

static void quiesce(Loop *loop) {
  for (auto &entry : eager(loop)->all) {
    if (entry.first->reading) continue;
    while (!entry.second.pieces.empty() && reportFirst(entry.first)) {
    }
  }
}

const LoopOps kLoopEager = {
    "eager", create, destroy, attach, detach, connect, receive, drain, rest, quiesce, wait,
};
