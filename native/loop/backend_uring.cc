/*
 * The io_uring backend: one system call a turn submits what is to be sent, waits, and brings what was received.
 *
 * A connection has one receive under way that goes on from turn to turn; its bytes arrive in buffers of the arena and are
 * reported there, without a copy. Bytes that arrive when they cannot be reported (a second piece in one turn, a stream
 * that was stopped) are held in memory of the stream, and their buffer goes back to the kernel. A connection that moves
 * more than a turn takes is received from by system calls, as with epoll, because a full socket needs no announcement.
 *
 * Sends never block, so they are complete when the call that submits them returns: their bytes need to stay only so
 * long, and a buffer that was reported in one turn can be given back in the next.
 *
 * Entries for the kernel are made in wait() from the state of the streams, never in between: a descriptor number that was
 * closed and used again meanwhile cannot be confused.
 */
#include "loop/uring_have.h"

#ifdef TSB_HAVE_URING

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>

#include <new>

#include "loop/ready.h"
#include "loop/stream.h"
#include "loop/uring_loop.h"
#include "plainio.h"

namespace tsb {

/** How long a cancellation is waited for, in ms; the kernel needs microseconds. */
constexpr int kCancelStepMs = 100;
constexpr int kCancelSteps = 50;

/** The kernel makes about so many completions in one call; when there may be more, the same turn asks again. */
constexpr size_t kCompletionsOfCall = 20;
constexpr int kMoreCalls = 32;

static thread_local std::string refusal;

const char *uringRefusal() { return refusal.c_str(); }

static UringLoop *uringLoop(Loop *loop) { return static_cast<UringLoop *>(loop); }

/** Stops a receive that brings more than is wanted. */
static void stopReceive(UringLoop *l, Stream *s) {
  if (!s->uring.receiving || s->uring.canceling) return;
  s->uring.canceling = true;
  l->cancels.push_back(uringDataOf(s, kOpReceive));
}

static void hold(UringLoop *l, Stream *s, unsigned buffer, size_t n) {
  if (!s->held.append(uringBuffer(&l->ring, buffer), n)) streamFailed(s, -ENOMEM);
}

/* ---- receiving ---- */

/** True when a receive is due that no completion announces. */
static bool due(const Stream *s) {
  const UringPart &part = s->uring;
  if (!streamWants(s)) return false;
  return s->held.length > 0 || part.endDue || (part.saturated && !part.receiving) || streamHasInput(s);
}

static void queueIfDue(Stream *s) {
  if (s->kind == StreamKind::kConnection && due(s)) streamQueueReceive(s);
}

static void ended(Stream *s, int result) {
  s->uring.ended = true;
  s->uring.saturated = false;
  s->uring.endResult = result;
  s->uring.endDue = s->held.length > 0 || !streamReceived(s, nullptr, result);
}

/** What was received ahead, then the end, then what the socket has. There is room for it. */
static ssize_t receiveBytes(Stream *s, const Place &place) {
  UringPart *part = &s->uring;
  if (s->held.length > 0) {
    const size_t n = s->held.length < place.most ? s->held.length : place.most;
    memcpy(place.bytes, s->held.first(), n);
    s->held.drop(n);
    return static_cast<ssize_t>(n);
  }
  if (part->endDue) {
    part->endDue = false;
    return part->endResult;
  }
  if (!part->saturated || part->receiving) return -EAGAIN;
  const ssize_t n = readyRecv(s, place);
  part->ended = n <= 0 && n != -EAGAIN;
  if (n < static_cast<ssize_t>(place.most)) part->saturated = false;
  return n;
}

static int receive(Loop *, Stream *s, bool on) {
  if (s->kind == StreamKind::kWatch && on) {
    struct stat about;
    // epoll refuses what is always ready, and so does this backend
    if (fstat(s->fd, &about) == 0 && (S_ISREG(about.st_mode) || S_ISDIR(about.st_mode))) return -EPERM;
  }
  if (!on) return 0;
  // who insists after an end is told again
  if (!s->uring.endDue) s->uring.ended = false;
  queueIfDue(s);
  if (!s->uring.receiving) uringList(s);
  return 0;
}

/** Bytes have arrived in a buffer. */
static void received(UringLoop *l, Stream *s, unsigned buffer, size_t n) {
  const bool tooMany = s->recvLimit > 0 && n > s->recvLimit;
  Taken taken = Taken::kRefused;
  if (s->held.length == 0 && !tooMany) taken = streamReceivedAt(s, kBuffersAt + buffer * kBufferSize, n);
  if (taken == Taken::kInPlace) {
    l->lent.push_back(buffer);
    return;
  }
  if (taken == Taken::kRefused) hold(l, s, buffer, n);
  uringGiveBack(&l->ring, buffer);
  if (s->held.length + s->kept.length > kReceiveMost) stopReceive(l, s);
}

/** What a completion of a receive without bytes says. */
enum class Brings {
  kNothing,  // the request was canceled
  kMore,     // there is something to be received by a system call
  kEnd,      // the stream has ended or broken
};

static Brings brings(const io_uring_cqe &cqe) {
  // a poll, because nothing is received ahead; or the others have all the buffers
  if (cqe.res > 0 || cqe.res == -ENOBUFS) return Brings::kMore;
  const bool again = cqe.res == -ECANCELED || cqe.res == -EAGAIN || cqe.res == -EINTR;
  return again ? Brings::kNothing : Brings::kEnd;
}

static void onReceive(UringLoop *l, Stream *s, const io_uring_cqe &cqe) {
  const bool last = !(cqe.flags & IORING_CQE_F_MORE);
  bool more = false;
  if (cqe.flags & IORING_CQE_F_BUFFER) {
    received(l, s, uringBufferOf(cqe), static_cast<size_t>(cqe.res));
    more = cqe.res == static_cast<int>(kBufferSize) || s->held.length > 0;
  } else if (brings(cqe) == Brings::kEnd) {
    ended(s, cqe.res);
  } else {
    more = brings(cqe) == Brings::kMore;
  }
  if (last) {
    s->uring.saturated = more && !s->uring.ended;
    // whether it has ended is not known while nothing is under way
    s->ending = true;
    uringList(s);
  }
  queueIfDue(s);
}

/* ---- what else completes ---- */

static void drain(Loop *, Stream *s) { uringList(s); }

static void connect(Loop *, Stream *s, const sockaddr *addr, socklen_t length) {
  readyConnectStart(s, addr, length);
  uringList(s);
}

static void onPollOut(Stream *s) {
  if (s->connecting && !s->connectEnded) readyConnect(s);
  if (!s->connecting) readySend(s);
  // a TLS peer that receives again is read from again
  queueIfDue(s);
}

static void onCompletion(UringLoop *l, const io_uring_cqe &cqe) {
  const UringOp op = uringOpOf(cqe);
  if (op == kOpSend || op == kOpCancel) return;
  Stream *s = uringStreamOf(cqe.user_data);
  if (!s) {
    if (cqe.flags & IORING_CQE_F_BUFFER) uringGiveBack(&l->ring, uringBufferOf(cqe));
    return;
  }
  if (op == kOpPollOut) {
    if (cqe.res != -ECANCELED) onPollOut(s);
  } else if (s->kind == StreamKind::kConnection) {
    onReceive(l, s, cqe);
  } else if (s->kind == StreamKind::kListener) {
    if (s->reading && cqe.res != -ECANCELED) readyAccept(s);
  } else if (cqe.res != -ECANCELED) {
    streamReadable(s);
  }
  uringList(s);
}

/* ---- a turn ---- */

static bool work(Stream *s) {
  if (!readyWork<due, receiveBytes>(s)) return false;
  uringList(s);
  return true;
}

/** The sends have completed. */
static void endSends(UringLoop *l) {
  for (const io_uring_cqe &cqe : l->ring.completions) {
    if (uringOpOf(cqe) != kOpSend) continue;
    Stream *s = uringStreamOf(cqe.user_data);
    if (s && s->outbox.count > 0) outboxSent(s, cqe.res);
  }
  // the kernel did not take these
  outboxFlushAll(&l->lane.outbox);
  for (const unsigned buffer : l->lent) uringGiveBack(&l->ring, buffer);
  l->lent.clear();
}

static int wait(Loop *loop, int timeoutMs) {
  UringLoop *l = uringLoop(loop);
  turnBegin(l);
  const unsigned sends = uringSubmitSends(l);
  uringSubmitListed(l);
  uringSubmitCancels(l);
  const bool idle = l->turn->count() == 0 && l->lane.due.empty() && l->ring.completions.empty();
  const bool block = timeoutMs != 0 && idle && !l->breakRequested;
  l->breakRequested = false;
  uringWait(l, block ? sends + 1 : 0, block ? timeoutMs : 0);
  size_t before = sends;
  for (int i = 0; i < kMoreCalls && l->ring.completions.size() - before >= kCompletionsOfCall; i++) {
    before = l->ring.completions.size();
    uringWait(l, 0, 0);
  }
  endSends(l);
  l->handling.swap(l->ring.completions);
  l->counted = 0;
  for (const io_uring_cqe &cqe : l->handling) onCompletion(l, cqe);
  l->handling.clear();
  // after the completions, which need little of the arena, and may bring what comes behind kept bytes
  laneDeliver(&l->lane, work);
  return l->turn->join();
}

/* ---- ending what is under way ---- */

static void cancelAll(UringLoop *l) {
  if (l->underWay == 0) return;
  if (io_uring_sqe *entry = uringEntry(&l->ring)) uringPrepareCancelAll(entry, kOpCancel);
  // asked for all, the kernel makes all completions in one call
  for (int i = 0; i < kCancelSteps && l->underWay > 0; i++)
    uringWait(l, static_cast<unsigned>(l->underWay), kCancelStepMs);
}

/** A completion of a receive, between two turns: nothing can be reported now. */
static void holdCompletion(UringLoop *l, Stream *s, const io_uring_cqe &cqe) {
  if (cqe.flags & IORING_CQE_F_BUFFER) {
    hold(l, s, uringBufferOf(cqe), static_cast<size_t>(cqe.res));
    uringGiveBack(&l->ring, uringBufferOf(cqe));
  } else if (brings(cqe) == Brings::kEnd) {
    s->uring.ended = s->uring.endDue = true;
    s->uring.endResult = cqe.res;
  } else if (brings(cqe) == Brings::kMore) {
    s->uring.saturated = true;
  }
  s->ending = true;
  uringList(s);
  queueIfDue(s);
}

/** Takes what the kernel brought for connections out of the completions. */
static void holdCompletions(UringLoop *l) {
  std::vector<io_uring_cqe> others;
  for (const io_uring_cqe &cqe : l->ring.completions) {
    Stream *s = uringOpOf(cqe) == kOpReceive ? uringStreamOf(cqe.user_data) : nullptr;
    if (s && s->kind == StreamKind::kConnection)
      holdCompletion(l, s, cqe);
    else
      others.push_back(cqe);
  }
  l->ring.completions.swap(others);
  l->counted = l->ring.completions.size();
}

/** What is held comes behind the kept bytes. */
static void keepHeld(Stream *s) {
  UringPart *part = &s->uring;
  if (!s->kept.append(s->held.first(), s->held.length)) streamFailed(s, -ENOMEM);
  s->held.clear();
  part->saturated = false;
  if (part->endDue) part->endDue = !streamReceived(s, nullptr, part->endResult);
}

static void quiesce(Loop *loop) {
  UringLoop *l = uringLoop(loop);
  cancelAll(l);
  holdCompletions(l);
  for (Stream *s : loop->streams->all)
    if (s && s->kind == StreamKind::kConnection && !s->reading && !s->tls) keepHeld(s);
}

/** Waits until nothing of a stream is under way. What arrives meanwhile is lost with the stream. */
static void finish(UringLoop *l, const Stream *s) {
  uringSubmitCancels(l);
  for (int i = 0; i < kCancelSteps && (s->uring.receiving || s->uring.polling); i++) uringWait(l, 1, kCancelStepMs);
}

static void detach(Loop *loop, Stream *s, bool stays) {
  UringLoop *l = uringLoop(loop);
  if (s->uring.receiving && !s->uring.canceling) l->cancels.push_back(uringDataOf(s, kOpReceive));
  if (s->uring.polling) l->cancels.push_back(uringDataOf(s, kOpPollOut));
  // a listener releases its address at once
  const bool now = stays || s->kind == StreamKind::kListener;
  if (now && (s->uring.receiving || s->uring.polling)) finish(l, s);
}

/* ---- life ---- */

static Loop *create(Turn *turn, const LoopOptions &options, int *err) {
  *err = -ENOMEM;
  UringLoop *l = new (std::nothrow) UringLoop();
  if (!l) return nullptr;
  l->ops = &kLoopUring;
  l->turn = turn;
  l->options = options;
  l->wakeFd = -1;
  l->lane.turn = turn;
  l->lane.section = &turn->sections[0];
  l->lane.recvMax = static_cast<size_t>(options.recvMax);
  *err = -EOPNOTSUPP;
  if (uringOpen(&l->ring, turn->arena + kBuffersAt, &refusal)) return l;
  delete l;
  return nullptr;
}

static void destroy(Loop *loop) {
  UringLoop *l = uringLoop(loop);
  cancelAll(l);
  uringClose(&l->ring);
  delete l;
}

static int attach(Loop *loop, Stream *s) {
  UringLoop *l = uringLoop(loop);
  s->lane = &l->lane;
  s->uring.tag = ++l->lastTag;
  return 0;
}

const LoopOps kLoopUring = {
    "uring", create, destroy, attach, detach, connect, receive, drain, quiesce, wait,
};

}  // namespace tsb

#else  // TSB_HAVE_URING

#include <errno.h>

#include "loop/stream.h"

namespace tsb {

const char *uringRefusal() { return "not built in, because the kernel's headers were older than 5.19"; }

static Loop *create(Turn *, const LoopOptions &, int *err) {
  *err = -EOPNOTSUPP;
  return nullptr;
}

const LoopOps kLoopUring = {
    "uring", create, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
};

}  // namespace tsb

#endif  // TSB_HAVE_URING
