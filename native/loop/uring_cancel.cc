/* Ending what is under way in the kernel: for a handover, and for a stream that is closed or changes its lane. */
#include "loop/uring_have.h"

#ifdef TSB_HAVE_URING

#include <errno.h>

#include <algorithm>

#include "loop/uring_loop.h"

namespace tsb {

/** How long a cancellation is waited for, in ms; the kernel needs microseconds. */
constexpr int kCancelStepMs = 100;
constexpr int kCancelSteps = 50;
/** Connections that change their lanes in one turn, and handles that are looked at for that. */
constexpr size_t kMovesOfTurn = 64;
constexpr size_t kLooksOfTurn = 4096;

static void cancelStream(UringLane *l, const Stream *s) {
  if (s->uring.receiving && !s->uring.canceling) l->cancels.push_back(uringDataOf(s, kOpReceive));
  if (s->uring.polling) l->cancels.push_back(uringDataOf(s, kOpPollOut));
}

/* ---- everything ---- */

static void cancelAll(UringLane *l) {
  if (l->underWay == 0) return;
  // thousands one by one, because one request that cancels all needs quadratic time for them
  uringSubmitCancels(l);
  for (int before = l->underWay + 1; l->underWay > 0 && l->underWay < before;) {
    before = l->underWay;
    uringWait(l, 0, 0);
  }
  if (l->underWay == 0) return;
  // what is left belongs to streams that are detached
  if (io_uring_sqe *entry = uringEntry(&l->ring)) uringPrepareCancelAll(entry, kOpCancel);
  // asked for all, the kernel makes all completions in one call
  for (int i = 0; i < kCancelSteps && l->underWay > 0; i++)
    uringWait(l, static_cast<unsigned>(l->underWay), kCancelStepMs);
}

/** A completion of a receive, between two turns: nothing can be reported now. */
static void holdCompletion(UringLane *l, Stream *s, const io_uring_cqe &cqe) {
  if (cqe.flags & IORING_CQE_F_BUFFER) {
    uringHold(l, s, uringBufferOf(cqe), static_cast<size_t>(cqe.res));
    uringGiveBack(&l->ring, uringBufferOf(cqe));
  } else if (uringBrings(cqe) == Brings::kEnd) {
    s->uring.ended = s->uring.endDue = true;
    s->uring.endResult = cqe.res;
  } else if (uringBrings(cqe) == Brings::kMore) {
    s->uring.saturated = true;
  }
  s->ending = true;
  uringList(s);
  uringQueueIfDue(s);
}

/** Takes what the kernel brought for connections out of the completions. */
static void holdCompletions(UringLane *l) {
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
  s->lane->received += s->held.length();
  if (!s->kept.append(s->held.first(), s->held.length())) streamFailed(s, -ENOMEM);
  s->held.clear();
  part->saturated = false;
  if (part->endDue) part->endDue = !streamReceived(s, nullptr, part->endResult);
}

void uringCancelAll(Lane *lane) { cancelAll(uringLane(lane)); }

static void quiesceLane(Lane *lane) {
  cancelAll(uringLane(lane));
  holdCompletions(uringLane(lane));
}

void uringQuiesce(Loop *loop) {
  for (const Stream *s : loop->streams->all)
    if (s && s->lane) cancelStream(uringLaneOf(s), s);
  for (Lane *lane : loop->lanes) laneCall(loop, lane, quiesceLane);
  for (Stream *s : loop->streams->all)
    if (s && s->kind == StreamKind::kConnection && !s->reading && !s->tls) keepHeld(s);
}

/* ---- some streams ---- */

static bool underWay(const Stream *s) { return s->uring.receiving || s->uring.polling; }

/** Waits until nothing of l->leaving is under way; what has arrived is among the completions. */
static void leave(Lane *lane) {
  UringLane *l = uringLane(lane);
  uringSubmitCancels(l);
  const auto any = [l] { return std::any_of(l->leaving.begin(), l->leaving.end(), underWay); };
  for (int i = 0; i < kCancelSteps && any(); i++) uringWait(l, 1, kCancelStepMs);
}

void uringDetach(Loop *loop, Stream *s, bool stays) {
  UringLane *l = uringLaneOf(s);
  laneLeave(s);
  cancelStream(l, s);
  // a listener releases its address at once
  const bool now = stays || s->kind == StreamKind::kListener;
  if (!now || !underWay(s)) return;
  // what arrives meanwhile is lost with the stream
  l->leaving.push_back(s);
  laneCall(loop, l, leave);
  l->leaving.clear();
}

/* ---- changing lanes ---- */

static void leaveAndHold(Lane *lane) {
  for (const Stream *s : uringLane(lane)->leaving) cancelStream(uringLane(lane), s);
  leave(lane);
  holdCompletions(uringLane(lane));
}

static bool misplaced(const UringLoop *l, const Stream *s) {
  return s && s->kind == StreamKind::kConnection && (s->lane == l->lanes[0]) == l->duty.on;
}

/** Puts the streams that should move on the lists of their lanes. Returns false when there are none. */
static bool chooseMoves(UringLoop *l) {
  const std::vector<Stream *> &all = l->streams->all;
  size_t moves = 0;
  for (size_t looks = 0; l->moveNext < all.size() && moves < kMovesOfTurn && looks < kLooksOfTurn; looks++) {
    Stream *s = all[l->moveNext++];
    if (!misplaced(l, s)) continue;
    outboxFlush(s);
    uringLaneOf(s)->leaving.push_back(s);
    moves++;
  }
  return moves > 0;
}

/** A stream belongs to another lane from now on: requests of the old one are not its own any more. */
static void join(UringLoop *l, Stream *s) {
  laneLeave(s);
  laneJoin(l, s, l->duty.on);
  s->uring.tag = ++l->lastTag;
  // a connection that is away gets its pool when it comes back
  if (s->tls && !streamAway(s)) tlsConnAttach(s->tls, s->tls->outlet, &s->lane->tlsPool);
}

static void dropForeign(const Lane *lane, std::vector<Stream *> *list) {
  const auto foreign = [lane](const Stream *s) { return streamLive(s) && s->lane != lane; };
  list->erase(std::remove_if(list->begin(), list->end(), foreign), list->end());
}

static void moveLeaving(UringLoop *l, UringLane *lane) {
  std::vector<Stream *> leaving;
  leaving.swap(lane->leaving);
  for (Stream *s : leaving)
    if (!underWay(s)) join(l, s);
  dropForeign(lane, &lane->due);
  dropForeign(lane, &lane->listed);
  dropForeign(lane, &lane->outbox.streams);
  for (Stream *s : leaving) {
    if (s->lane == lane) continue;
    const bool queued = s->queued;
    s->queued = s->uring.listed = s->outbox.listed = false;
    if (queued) streamQueue(s);
    uringList(s);
  }
}

void uringMoveSome(UringLoop *l) {
  if (l->movedForDuty != l->duty.on) l->moveNext = 0;
  l->movedForDuty = l->duty.on;
  if (!chooseMoves(l)) return;
  for (Lane *lane : l->lanes) {
    if (uringLane(lane)->leaving.empty()) continue;
    laneCall(l, lane, leaveAndHold);
    moveLeaving(l, uringLane(lane));
  }
}

}  // namespace tsb

#endif  // TSB_HAVE_URING
