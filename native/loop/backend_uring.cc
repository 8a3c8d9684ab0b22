/*
 * The io_uring backend: one system call a turn submits what is to be sent, waits, and brings what was received.
 *
 * A connection has one receive under way that goes on from turn to turn; its bytes arrive in buffers of the arena and are
 * reported there, without a copy. Bytes that arrive when they cannot be reported (a second piece in one turn, a stream
 * that was stopped) are held in memory of the stream, and their buffer goes back to the kernel. A connection that moves
 * more than a turn takes is received from by system calls, as with epoll, because a full socket needs no announcement.
 *
 * Sends never block, so they are complete when the call that submits them returns. Their bytes need to stay only so
 * long. A buffer that was reported in one turn can be given back in the next.
 *
 * Entries for the kernel are made in wait() from the state of the streams, never in between: a descriptor number that was
 * closed and used again meanwhile cannot be confused.
 */
#include "loop/uring_have.h"

#ifdef TSB_HAVE_URING

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <new>

#include "loop/ready.h"
#include "loop/stream.h"
#include "loop/uring_loop.h"
#include "plainio.h"

namespace tsb {

/** The kernel makes about so many completions in one call; when there may be more, the same turn asks again. */
constexpr size_t kCompletionsOfCall = 20;
constexpr int kMoreCalls = 32;
/** Small sends are checked at the latest after a wait of so long. */
constexpr int kLookMs = 10;
/** So many completions before it is its turn, the stream of a completion is fetched into the cache. */
constexpr size_t kFetchAhead = 2;

static thread_local std::string refusal;

const char *uringRefusal() { return refusal.c_str(); }

static UringLoop *uringLoop(Loop *loop) { return static_cast<UringLoop *>(loop); }

/** Stops a receive that brings more than is wanted. */
static void stopReceive(UringLane *l, Stream *s) {
  if (!s->uring.receiving || s->uring.canceling) return;
  s->uring.canceling = true;
  l->cancels.push_back(uringDataOf(s, kOpReceive));
}

void uringHold(UringLane *l, Stream *s, unsigned buffer, size_t n) {
  if (!s->held.append(uringBuffer(&l->ring, buffer), n)) streamFailed(s, -ENOMEM);
}

/* ---- receiving ---- */

/** True when a receive is due that no completion announces. */
static bool due(const Stream *s) {
  const UringPart &part = s->uring;
  if (!streamWants(s)) return false;
  return !s->held.empty() || part.endDue || (part.saturated && !part.receiving) || streamHasInput(s);
}

void uringQueueIfDue(Stream *s) {
  if (s->kind == StreamKind::kConnection && due(s)) streamQueueReceive(s);
}

static void ended(Stream *s, int result) {
  s->uring.ended = true;
  s->uring.saturated = false;
  s->uring.endResult = result;
  s->uring.endDue = !s->held.empty() || !streamReceived(s, nullptr, result);
}

/** What was received ahead, then the end, then what the socket has. There is room for it. */
static ssize_t receiveBytes(Stream *s, const Place &place) {
  UringPart *part = &s->uring;
  if (!s->held.empty()) {
    const size_t n = s->held.length() < place.most ? s->held.length() : place.most;
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
  // a receive that is started again after the end reports the end again
  if (!s->uring.endDue) s->uring.ended = false;
  uringQueueIfDue(s);
  if (!s->uring.receiving) uringList(s);
  return 0;
}

static void rest(Loop *, Stream *s) { stopReceive(uringLaneOf(s), s); }

/** Bytes have arrived in a buffer. */
static void received(UringLane *l, Stream *s, unsigned buffer, size_t n) {
  const bool tooMany = s->recvLimit > 0 && n > s->recvLimit;
  Taken taken = Taken::kRefused;
  const size_t offset = static_cast<size_t>(uringBuffer(&l->ring, buffer) - l->turn->arena);
  if (s->held.empty() && !tooMany) taken = streamReceivedAt(s, offset, n);
  if (taken == Taken::kInPlace) {
    l->lent.push_back(buffer);
    return;
  }
  if (taken == Taken::kRefused) uringHold(l, s, buffer, n);
  uringGiveBack(&l->ring, buffer);
  if (s->held.length() + s->kept.length() > kReceiveMost) stopReceive(l, s);
}

Brings uringBrings(const io_uring_cqe &cqe) {
  // a poll, because nothing is received ahead; or the others have all the buffers
  if (cqe.res > 0 || cqe.res == -ENOBUFS) return Brings::kMore;
  const bool again = cqe.res == -ECANCELED || cqe.res == -EAGAIN || cqe.res == -EINTR;
  return again ? Brings::kNothing : Brings::kEnd;
}

static void onReceive(UringLane *l, Stream *s, const io_uring_cqe &cqe) {
  const bool last = !(cqe.flags & IORING_CQE_F_MORE);
  bool more = false;
  if (cqe.flags & IORING_CQE_F_BUFFER) {
    received(l, s, uringBufferOf(cqe), static_cast<size_t>(cqe.res));
    more = cqe.res == static_cast<int>(kBufferSize) || !s->held.empty();
  } else if (uringBrings(cqe) == Brings::kEnd) {
    ended(s, cqe.res);
  } else {
    more = uringBrings(cqe) == Brings::kMore;
  }
  if (last) {
    s->uring.saturated = more && !s->uring.ended;
    // whether it has ended is not known while nothing is under way
    s->ending = true;
    uringList(s);
  }
  uringQueueIfDue(s);
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
  uringQueueIfDue(s);
}

static void onCompletion(UringLane *l, const io_uring_cqe &cqe) {
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
static void endSends(UringLane *l) {
  for (const io_uring_cqe &cqe : l->ring.completions) {
    if (uringOpOf(cqe) != kOpSend) continue;
    Stream *s = uringStreamOf(cqe.user_data);
    if (s && s->outbox.count > 0) outboxSent(s, cqe.res);
  }
  // the kernel did not take these
  outboxFlushAll(&l->outbox);
}

/** Nothing refers to the buffers of the turn before any more. */
static void giveBackLent(UringLane *l) {
  // other hands may be sending what this turn's buffers hold
  if (l->turn->hands() > 0) l->lent.swap(l->lentBefore);
  for (const unsigned buffer : l->lent) uringGiveBack(&l->ring, buffer);
  l->lent.clear();
}

static bool onlySends(const UringLane *l) {
  for (const io_uring_cqe &cqe : l->ring.completions)
    if (uringOpOf(cqe) != kOpSend) return false;
  return true;
}

/**
 * Submits, and waits for something besides the sends. A send that failed or was cut short is something, too, but the kernel
 * does not count it as such: the sends are looked at before a long wait.
 */
static void submitAndWait(UringLane *l, unsigned sends, bool large, int timeoutMs) {
  if (sends == 0 || timeoutMs == 0) {
    uringWait(l, timeoutMs != 0 ? 1 : 0, timeoutMs);
    return;
  }
  const bool isLong = timeoutMs < 0 || timeoutMs > kLookMs;
  const int firstMs = large ? 0 : isLong ? kLookMs : timeoutMs;
  uringWait(l, firstMs != 0 ? sends + 1 : 0, firstMs);
  if (l->ring.completions.size() > sends) return;
  endSends(l);
  uringSubmitListed(l);
  // if the kernel has refused sends, as many other completions may be there
  const bool again = l->due.empty() && firstMs != timeoutMs && onlySends(l);
  uringWait(l, again ? 1 : 0, !again ? 0 : timeoutMs < 0 ? timeoutMs : timeoutMs - firstMs);
}

/** One turn of a lane, by its thread. timeoutMs: 0 = do not wait, -1 = without limit. */
static void turnOf(UringLane *l, int timeoutMs) {
  bool large = false;
  const unsigned sends = uringSubmitSends(l, &large);
  uringSubmitListed(l);
  uringSubmitCancels(l);
  // A full queue has been submitted meanwhile, and what completed then has to be handled. Or something failed.
  if (!l->ring.completions.empty() || !l->due.empty()) timeoutMs = 0;
  submitAndWait(l, sends, large, timeoutMs);
  size_t before = sends;
  for (int i = 0; i < kMoreCalls && l->ring.completions.size() - before >= kCompletionsOfCall; i++) {
    before = l->ring.completions.size();
    uringWait(l, 0, 0);
  }
  endSends(l);
  giveBackLent(l);
  l->handling.swap(l->ring.completions);
  l->counted = 0;
  for (size_t i = 0; i < l->handling.size(); i++) {
    if (i + kFetchAhead < l->handling.size()) uringFetch(l->handling[i + kFetchAhead].user_data);
    onCompletion(l, l->handling[i]);
  }
  l->handling.clear();
  // after the completions, which need little of the arena, and may bring what comes behind kept bytes
  laneDeliver(l, work);
}

static void workLane(Lane *lane) { turnOf(uringLane(lane), 0); }

static bool queued(const Lane *lane) {
  const UringLane *l = static_cast<const UringLane *>(lane);
  return !l->due.empty() || !l->ring.completions.empty();
}

/** With hands: the lane has something to do. */
static bool busy(const Lane *lane) {
  const UringLane *l = static_cast<const UringLane *>(lane);
  return queued(l) || !l->outbox.streams.empty() || !l->listed.empty() || !l->cancels.empty() || uringHasNews(&l->ring);
}

static bool anyLane(const UringLoop *l, bool (*has)(const Lane *lane)) {
  for (const Lane *lane : l->lanes)
    if (has(lane)) return true;
  return false;
}

static void onNotice(void *context) {
  uint64_t count;
  // it was only to end the wait: what there is to do is seen in the lanes
  if (read(static_cast<UringLoop *>(context)->noticeFd, &count, sizeof(count)) < 0) return;
}

static void noticeNews(const UringLoop *l, bool on) {
  for (size_t i = 1; i < l->lanes.size(); i++) uringNotice(&uringLane(l->lanes[i])->ring, on);
}

/** Waits in the first lane, until that has something to do or one of the others. */
static void waitForNews(UringLoop *l, int timeoutMs) {
  noticeNews(l, true);
  turnOf(uringLane(l->lanes[0]), anyLane(l, busy) ? 0 : timeoutMs);
  noticeNews(l, false);
}

static int wait(Loop *loop, int timeoutMs) {
  UringLoop *l = uringLoop(loop);
  turnBegin(l);
  const bool mayBlock = timeoutMs != 0 && !l->breakRequested;
  l->breakRequested = false;
  if (!l->hands) {
    const bool idle = l->turn->count() == 0 && !queued(l->lanes[0]);
    turnOf(uringLane(l->lanes[0]), mayBlock && idle ? timeoutMs : 0);
    return l->turn->join();
  }
  if (!streamLive(&l->notice)) watchOwn(l->streams, &l->notice, l->noticeFd, onNotice, l);
  uringMoveSome(l);
  lanesWork(l, busy, workLane);
  if (mayBlock && l->turn->count() == 0 && !anyLane(l, queued)) {
    waitForNews(l, timeoutMs);
    lanesWork(l, busy, workLane);
  }
  return l->turn->join();
}

/* ---- life ---- */

static void openLane(Lane *lane) {
  UringLane *l = uringLane(lane);
  const std::ptrdiff_t at = lane->section - &lane->turn->sections[0];
  UringOptions options = {lane->turn->arena + kBuffersAt, kBufferCount, l->noticeFd};
  if (at > 0) {
    options.buffers = lane->turn->arena + handSpaceAt(static_cast<int>(at) - 1) + 2 * kHandHalf;
    options.bufferCount = kHandBufferCount;
  }
  uringOpen(&l->ring, options, &l->refusal);
}

static void destroy(Loop *loop) {
  UringLoop *l = uringLoop(loop);
  if (l->hands || l->lanes.size() == 1)
    for (Lane *lane : l->lanes) laneCall(l, lane, uringCancelAll);
  delete l->hands;
  for (Lane *lane : l->lanes) {
    uringClose(&uringLane(lane)->ring);
    delete uringLane(lane);
  }
  if (l->noticeFd >= 0) close(l->noticeFd);
  delete l;
}

/** Starts the hands, and opens the ring of each lane in its thread. Returns 0 or -errno. */
static int openLanes(UringLoop *l, int hands) {
  int err = 0;
  if (hands > 0) {
    l->noticeFd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (l->noticeFd < 0) return -errno;
    l->hands = Hands::start(hands, &err);
    if (!l->hands) return err;
  }
  for (Lane *lane : l->lanes) {
    uringLane(lane)->noticeFd = l->noticeFd;
    laneCall(l, lane, openLane);
    refusal = uringLane(lane)->refusal;
    if (uringLane(lane)->ring.fd < 0) return -EOPNOTSUPP;
  }
  return 0;
}

static Loop *create(Turn *turn, const LoopOptions &options, int *err) {
  *err = -ENOMEM;
  UringLoop *l = new (std::nothrow) UringLoop();
  if (!l) return nullptr;
  l->ops = &kLoopUring;
  l->turn = turn;
  l->options = options;
  l->wakeFd = l->noticeFd = -1;
  for (int i = 0; i <= options.hands; i++) laneAdd(l, new UringLane());
  *err = openLanes(l, options.hands);
  if (*err == 0) return l;
  destroy(l);
  return nullptr;
}

static int attach(Loop *loop, Stream *s) {
  laneJoin(loop, s, loop->duty.on);
  s->uring.tag = ++uringLoop(loop)->lastTag;
  return 0;
}

const LoopOps kLoopUring = {
    "uring", create, destroy, attach, uringDetach, connect, receive, drain, rest, uringQuiesce, wait,
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
    "uring", create, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
};

}  // namespace tsb

#endif  // TSB_HAVE_URING
