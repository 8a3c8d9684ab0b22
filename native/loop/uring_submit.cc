/* What an io_uring loop asks of the kernel, and which requests are under way. See uring_loop.h. */
#include "loop/uring_have.h"

#ifdef TSB_HAVE_URING

#include <poll.h>

#include "loop/uring_loop.h"

namespace tsb {

constexpr uint64_t kOpMask = 63;
constexpr int kTagShift = 48;
/** Smaller sends fill the least buffer of a socket only when its peer has not received for some time. */
constexpr size_t kLargeSend = 4096;
constexpr uint64_t kPointerMask = ((1ull << kTagShift) - 1) & ~kOpMask;

/* ---- what a completion is about ---- */

uint64_t uringDataOf(const Stream *s, UringOp op) {
  return static_cast<uint64_t>(s->uring.tag) << kTagShift | reinterpret_cast<uintptr_t>(s) | op;
}

static UringOp opOf(uint64_t data) { return static_cast<UringOp>(data & kOpMask); }

UringOp uringOpOf(const io_uring_cqe &cqe) { return opOf(cqe.user_data); }

Stream *uringStreamOf(uint64_t data) {
  Stream *s = reinterpret_cast<Stream *>(data & kPointerMask);
  return streamLive(s) && s->uring.tag == data >> kTagShift ? s : nullptr;
}

void uringFetch(uint64_t data) {
  const char *stream = reinterpret_cast<const char *>(data & kPointerMask);
  __builtin_prefetch(stream, 1);
  __builtin_prefetch(stream + alignof(Stream), 1);
}

void uringList(Stream *s) {
  if (s->uring.listed) return;
  s->uring.listed = true;
  uringLaneOf(s)->listed.push_back(s);
}

/* ---- submitting ---- */

static bool wantsReceive(const Stream *s) {
  const UringPart &part = s->uring;
  if (part.receiving) return false;
  if (s->kind != StreamKind::kConnection) return s->reading;
  return streamWants(s) && !s->connecting && !part.ended && !part.saturated && s->held.empty();
}

static bool wantsPollOut(const Stream *s) {
  if (s->kind != StreamKind::kConnection || s->uring.polling) return false;
  return s->connecting ? !s->connectEnded : !s->unsent.empty();
}

/** Returns false when the kernel takes no more entries. */
static bool submitFor(UringLane *l, Stream *s) {
  if (wantsReceive(s)) {
    io_uring_sqe *entry = uringEntry(&l->ring);
    if (!entry) return false;
    if (s->kind == StreamKind::kConnection && s->streams->receiveAhead)
      uringPrepareReceive(&l->ring, entry, s->fd, uringDataOf(s, kOpReceive));
    else
      uringPreparePoll(entry, s->fd, POLLIN, uringDataOf(s, kOpReceive));
    s->uring.receiving = true;
    s->uring.canceling = false;
    s->ending = false;
    l->underWay++;
  }
  if (wantsPollOut(s)) {
    io_uring_sqe *entry = uringEntry(&l->ring);
    if (!entry) return false;
    uringPreparePoll(entry, s->fd, POLLOUT, uringDataOf(s, kOpPollOut));
    s->uring.polling = true;
    l->underWay++;
  }
  return true;
}

void uringSubmitListed(UringLane *l) {
  size_t done = 0;
  for (; done < l->listed.size(); done++) {
    Stream *s = l->listed[done];
    if (streamLive(s) && !submitFor(l, s)) break;
    s->uring.listed = false;
  }
  l->listed.erase(l->listed.begin(), l->listed.begin() + static_cast<std::ptrdiff_t>(done));
}

void uringSubmitCancels(UringLane *l) {
  while (!l->cancels.empty()) {
    io_uring_sqe *entry = uringEntry(&l->ring);
    if (!entry) return;
    uringPrepareCancel(entry, l->cancels.back(), kOpCancel);
    l->cancels.pop_back();
  }
}

/** An entry for what a stream has queued. Returns false when the kernel takes no more. */
static bool submitSend(UringLane *l, const Stream *s, size_t *message, size_t *part) {
  io_uring_sqe *entry = uringEntry(&l->ring);
  if (!entry) return false;
  iovec *parts = &l->parts[*part];
  outboxGather(s, parts);
  *part += static_cast<size_t>(s->outbox.count);
  if (s->outbox.count == 1) {
    uringPrepareSend(entry, s->fd, parts->iov_base, parts->iov_len, uringDataOf(s, kOpSend));
    return true;
  }
  msghdr *header = &l->messages[(*message)++];
  *header = {};
  header->msg_iov = parts;
  header->msg_iovlen = static_cast<size_t>(s->outbox.count);
  uringPrepareSend(entry, s->fd, header, 1, uringDataOf(s, kOpSend));
  entry->opcode = IORING_OP_SENDMSG;
  return true;
}

unsigned uringSubmitSends(UringLane *l, bool *large) {
  const std::vector<Stream *> &senders = l->outbox.streams;
  if (senders.empty()) return 0;
  outboxSealAll(&l->outbox);
  // the kernel reads both arrays, which must not move any more
  if (l->messages.size() < senders.size()) l->messages.resize(senders.size());
  if (l->parts.size() < l->outbox.pieces.size()) l->parts.resize(l->outbox.pieces.size());
  unsigned count = 0;
  size_t message = 0, part = 0;
  for (const Stream *s : senders) {
    if (s->outbox.count == 0) continue;
    if (!submitSend(l, s, &message, &part)) break;
    if (s->outbox.length >= kLargeSend) *large = true;
    count++;
  }
  return count;
}

/* ---- completions ---- */

/** A request that is not under way any more. Returns its stream, or null when that has been detached. */
static Stream *countOff(UringLane *l, uint64_t data) {
  const UringOp op = opOf(data);
  l->underWay--;
  Stream *s = uringStreamOf(data);
  if (!s) return nullptr;
  if (op == kOpReceive)
    s->uring.receiving = false;
  else
    s->uring.polling = false;
  return s;
}

/** True for the operations that last: sends and cancellations complete as they are submitted. */
static bool lasts(UringOp op) { return op == kOpReceive || op == kOpPollOut; }

static void countCompletions(UringLane *l) {
  for (; l->counted < l->ring.completions.size(); l->counted++) {
    io_uring_cqe &cqe = l->ring.completions[l->counted];
    if (cqe.res <= 0 && (cqe.flags & IORING_CQE_F_BUFFER)) {
      // kernels before 6.1 also name the buffer of a receive that brought nothing
      uringGiveBack(&l->ring, uringBufferOf(cqe));
      cqe.flags &= ~IORING_CQE_F_BUFFER;
    }
    if (lasts(uringOpOf(cqe)) && !(cqe.flags & IORING_CQE_F_MORE)) countOff(l, cqe.user_data);
  }
}

/** The kernel has not taken these entries. What a send should have sent is still in the outbox. */
static void takeBack(UringLane *l) {
  for (const io_uring_sqe &entry : uringTakeBack(&l->ring)) {
    const UringOp op = opOf(entry.user_data);
    if (op == kOpCancel && entry.addr != 0) l->cancels.push_back(entry.addr);
    if (!lasts(op)) continue;
    Stream *s = countOff(l, entry.user_data);
    if (s) uringList(s);
  }
}

void uringWait(UringLane *l, unsigned least, int timeoutMs) {
  const int err = uringEnter(&l->ring, least, timeoutMs);
  countCompletions(l);
  if (err < 0) takeBack(l);
}

}  // namespace tsb

#endif  // TSB_HAVE_URING
