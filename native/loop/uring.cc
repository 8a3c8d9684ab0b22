/* The rings of io_uring, and what the kernel can do. See uring.h. */
#include "loop/uring_have.h"

#ifdef TSB_HAVE_URING

#include "loop/uring.h"

#include <errno.h>
#include <linux/time_types.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace tsb {

/* Newer than the oldest header this is built with. */
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif
#ifndef IORING_SETUP_TASKRUN_FLAG
#define IORING_SETUP_TASKRUN_FLAG (1U << 9)
#endif
#ifndef IORING_SQ_TASKRUN
#define IORING_SQ_TASKRUN (1U << 2)
#endif
#ifndef IORING_RECV_MULTISHOT
#define IORING_RECV_MULTISHOT (1U << 1)
#endif

constexpr unsigned kEntries = 1024;
constexpr unsigned kCompletions = 8192;
constexpr uint16_t kBufferGroup = 0;
/** Submitting is given up after so many tries in a row. */
constexpr int kTriesMost = 100;

UringBest uringBest = {Receiving::kMany, true};

static int setup(unsigned entries, io_uring_params *params) {
  return static_cast<int>(syscall(__NR_io_uring_setup, entries, params));
}

static int registerWith(int fd, unsigned what, void *argument) {
  return static_cast<int>(syscall(__NR_io_uring_register, fd, what, argument, 1));
}

static unsigned load(const unsigned *place) { return __atomic_load_n(place, __ATOMIC_ACQUIRE); }
static void store(unsigned *place, unsigned value) { __atomic_store_n(place, value, __ATOMIC_RELEASE); }

/* ---- opening ---- */

static bool refuse(std::string *why, const char *what, int err) {
  *why = std::string(what) + ": " + strerror(err);
  return false;
}

/** The flags that cost least come first; older kernels refuse those that they do not know. */
static bool openRing(Uring *ring, bool noticed, io_uring_params *params, std::string *why) {
  // with DEFER_TASKRUN (6.1), nothing is received between two waits
  const unsigned deferred = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
  const unsigned common = IORING_SETUP_CQSIZE | IORING_SETUP_SUBMIT_ALL | (noticed ? IORING_SETUP_TASKRUN_FLAG : 0);
  for (const unsigned flags : {common | deferred, common | IORING_SETUP_COOP_TASKRUN}) {
    if ((flags & deferred) && !uringBest.deferred) continue;
    *params = io_uring_params();
    params->flags = flags;
    params->cq_entries = kCompletions;
    ring->fd = setup(kEntries, params);
    if (ring->fd >= 0) return true;
    if (errno != EINVAL) break;
  }
  return refuse(why, "io_uring_setup", errno);
}

static bool mapRing(Uring *ring, const io_uring_params &params, std::string *why) {
  constexpr unsigned kNeeded = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG;
  if ((params.features & kNeeded) != kNeeded) return refuse(why, "io_uring_setup", ENOSYS);
  const size_t submissions = params.sq_off.array + params.sq_entries * sizeof(unsigned);
  const size_t completions = params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe);
  const int prot = PROT_READ | PROT_WRITE;
  const size_t size = submissions > completions ? submissions : completions;
  void *rings = mmap(nullptr, size, prot, MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQ_RING);
  if (rings == MAP_FAILED) return refuse(why, "mmap of the rings", errno);
  ring->ringMemory = rings;
  ring->ringSize = size;
  const size_t entries = params.sq_entries * sizeof(io_uring_sqe);
  void *sqes = mmap(nullptr, entries, prot, MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQES);
  if (sqes == MAP_FAILED) return refuse(why, "mmap of the entries", errno);
  ring->entries = static_cast<io_uring_sqe *>(sqes);
  ring->entriesSize = entries;

  uint8_t *base = static_cast<uint8_t *>(rings);
  const auto at = [base](unsigned offset) { return reinterpret_cast<unsigned *>(base + offset); };
  ring->sqHead = at(params.sq_off.head);
  ring->sqTail = at(params.sq_off.tail);
  ring->sqMask = *at(params.sq_off.ring_mask);
  ring->sqCount = params.sq_entries;
  ring->sqFlags = at(params.sq_off.flags);
  ring->cqFlags = at(params.cq_off.flags);
  ring->cqHead = at(params.cq_off.head);
  ring->cqTail = at(params.cq_off.tail);
  ring->cqMask = *at(params.cq_off.ring_mask);
  ring->cqes = reinterpret_cast<io_uring_cqe *>(base + params.cq_off.cqes);
  // entry i is always at place i
  unsigned *array = at(params.sq_off.array);
  for (unsigned i = 0; i < params.sq_entries; i++) array[i] = i;
  return true;
}

static bool addBuffers(Uring *ring, const UringOptions &options, std::string *why) {
  const size_t size = options.bufferCount * sizeof(io_uring_buf);
  void *memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return refuse(why, "mmap of the buffer ring", errno);
  ring->bufferRing = static_cast<io_uring_buf_ring *>(memory);
  ring->buffers = options.buffers;
  ring->bufferCount = options.bufferCount;
  io_uring_buf_reg what = {};
  what.ring_addr = reinterpret_cast<uint64_t>(memory);
  what.ring_entries = ring->bufferCount;
  what.bgid = kBufferGroup;
  if (registerWith(ring->fd, IORING_REGISTER_PBUF_RING, &what) < 0) return refuse(why, "io_uring_register of a buffer ring", errno);
  for (unsigned i = 0; i < ring->bufferCount; i++) uringGiveBack(ring, i);
  return true;
}

void uringClose(Uring *ring) {
  if (ring->entries) munmap(ring->entries, ring->entriesSize);
  if (ring->ringMemory) munmap(ring->ringMemory, ring->ringSize);
  if (ring->fd >= 0) close(ring->fd);
  if (ring->bufferRing) munmap(ring->bufferRing, ring->bufferCount * sizeof(io_uring_buf));
  *ring = Uring();
}

/* ---- news ---- */

bool uringHasNews(const Uring *ring) {
  if (load(ring->sqFlags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) return true;
  return load(ring->cqHead) != load(ring->cqTail);
}

void uringNotice(Uring *ring, bool on) {
  // what the kernel adds before it reads this is seen by a thread that asks for news afterwards
  __atomic_store_n(ring->cqFlags, on ? 0 : IORING_CQ_EVENTFD_DISABLED, __ATOMIC_SEQ_CST);
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* ---- entries and completions ---- */

unsigned uringPending(const Uring *ring) { return *ring->sqTail - load(ring->sqHead); }

static void takeCompletions(Uring *ring) {
  unsigned head = *ring->cqHead;
  const unsigned tail = load(ring->cqTail);
  for (; head != tail; head++) ring->completions.push_back(ring->cqes[head & ring->cqMask]);
  store(ring->cqHead, head);
}

static int enter(Uring *ring, unsigned least, int timeoutMs) {
  __kernel_timespec limit = {timeoutMs / 1000, timeoutMs % 1000 * 1000000LL};
  io_uring_getevents_arg arg = {};
  if (timeoutMs >= 0) arg.ts = reinterpret_cast<uint64_t>(&limit);
  const unsigned flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
  const long n = syscall(__NR_io_uring_enter, ring->fd, uringPending(ring), least, flags, &arg, sizeof(arg));
  return n < 0 ? -errno : 0;
}

int uringEnter(Uring *ring, unsigned least, int timeoutMs) {
  int result = enter(ring, least, timeoutMs);
  takeCompletions(ring);
  for (int tries = 0; uringPending(ring) > 0 && tries < kTriesMost; tries++) {
    result = enter(ring, 0, 0);
    takeCompletions(ring);
  }
  if (uringPending(ring) == 0) return 0;
  // what is left must not be taken for submitted, or its bytes would be sent twice
  return result < 0 ? result : -EAGAIN;
}

std::vector<io_uring_sqe> uringTakeBack(Uring *ring) {
  std::vector<io_uring_sqe> entries;
  const unsigned head = load(ring->sqHead);
  for (unsigned at = head; at != *ring->sqTail; at++) entries.push_back(ring->entries[at & ring->sqMask]);
  store(ring->sqTail, head);
  return entries;
}

io_uring_sqe *uringEntry(Uring *ring) {
  if (uringPending(ring) == ring->sqCount) uringEnter(ring, 0, 0);
  if (uringPending(ring) == ring->sqCount) return nullptr;
  const unsigned tail = *ring->sqTail;
  io_uring_sqe *entry = &ring->entries[tail & ring->sqMask];
  memset(entry, 0, sizeof(*entry));
  store(ring->sqTail, tail + 1);
  return entry;
}

/* C++ knows no flexible array in a union: the entries lie where the ring begins. */
void uringGiveBack(Uring *ring, unsigned index) {
  io_uring_buf *all = reinterpret_cast<io_uring_buf *>(ring->bufferRing);
  io_uring_buf *place = &all[ring->bufferTail & (ring->bufferCount - 1)];
  place->addr = reinterpret_cast<uint64_t>(uringBuffer(ring, index));
  place->len = kBufferSize;
  place->bid = static_cast<uint16_t>(index);
  ring->bufferTail++;
  // the tail lies over the unused field of the first entry
  __atomic_store_n(&all[0].resv, ring->bufferTail, __ATOMIC_RELEASE);
}

void uringPrepareReceive(const Uring *ring, io_uring_sqe *entry, int fd, uint64_t data) {
  entry->opcode = IORING_OP_RECV;
  entry->fd = fd;
  entry->flags = IOSQE_BUFFER_SELECT;
  entry->buf_group = kBufferGroup;
  entry->user_data = data;
  if (ring->receiving == Receiving::kOnce) {
    entry->len = kBufferSize;
    return;
  }
  entry->ioprio = IORING_RECV_MULTISHOT;
  // called optlen in the newer headers
  entry->file_index = kReceiveMost;
}

void uringPreparePoll(io_uring_sqe *entry, int fd, unsigned events, uint64_t data) {
  entry->opcode = IORING_OP_POLL_ADD;
  entry->fd = fd;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  events = events << 16 | events >> 16;
#endif
  entry->poll32_events = events;
  entry->user_data = data;
}

void uringPrepareSend(io_uring_sqe *entry, int fd, const void *bytes, size_t length, uint64_t data) {
  entry->opcode = IORING_OP_SEND;
  entry->fd = fd;
  entry->addr = reinterpret_cast<uint64_t>(bytes);
  entry->len = static_cast<uint32_t>(length);
  entry->msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL;
  entry->user_data = data;
}

void uringPrepareCancel(io_uring_sqe *entry, uint64_t target, uint64_t data) {
  entry->opcode = IORING_OP_ASYNC_CANCEL;
  entry->fd = -1;
  entry->flags = IOSQE_CQE_SKIP_SUCCESS;
  entry->addr = target;
  entry->user_data = data;
}

void uringPrepareCancelAll(io_uring_sqe *entry, uint64_t data) {
  entry->opcode = IORING_OP_ASYNC_CANCEL;
  entry->fd = -1;
  entry->cancel_flags = IORING_ASYNC_CANCEL_ALL | IORING_ASYNC_CANCEL_ANY;
  entry->user_data = data;
}

/* ---- what the kernel can do ---- */

/** Data of the trial's requests. */
enum Trial : uint64_t { kTrialReceive = 1, kTrialPoll, kTrialSend, kTrialCancel };

/** Gives the trial's completions to `see` until it returns true. Returns false when it never does. */
template <typename See>
static bool await(Uring *ring, See see) {
  for (int i = 0; i < kTriesMost; i++) {
    if (uringEnter(ring, 0, 0) < 0) return false;
    bool seen = false;
    for (const io_uring_cqe &cqe : ring->completions) {
      if (cqe.flags & IORING_CQE_F_BUFFER) uringGiveBack(ring, uringBufferOf(cqe));
      seen = see(cqe) || seen;
    }
    ring->completions.clear();
    if (seen) return true;
  }
  return false;
}

/** Tries one way of receiving. A request that goes on has to say so. */
static bool receives(Uring *ring, const int *pair, Receiving way) {
  ring->receiving = way;
  if (write(pair[1], "x", 1) != 1) return false;
  uringPrepareReceive(ring, uringEntry(ring), pair[0], kTrialReceive);
  io_uring_cqe got = {};
  const bool answered = await(ring, [&got](const io_uring_cqe &cqe) {
    if (cqe.user_data == kTrialReceive) got = cqe;
    return cqe.user_data == kTrialReceive;
  });
  if (answered && got.res == 1 && (way == Receiving::kOnce || (got.flags & IORING_CQE_F_MORE))) return true;
  // what is refused leaves the byte where it is
  char byte;
  while (recv(pair[0], &byte, 1, MSG_DONTWAIT) > 0) {
  }
  return false;
}

static bool tryAll(Uring *ring, const int *pair, std::string *why) {
  bool received = false;
  for (const Receiving way : {Receiving::kMany, Receiving::kOnce})
    if (!received && way <= uringBest.receiving) received = receives(ring, pair, way);
  if (!received) return refuse(why, "receiving with io_uring", EOPNOTSUPP);
  const auto of = [](uint64_t trial, int least) {
    return [trial, least](const io_uring_cqe &cqe) { return cqe.user_data == trial && cqe.res >= least; };
  };
  uringPrepareSend(uringEntry(ring), pair[0], "y", 1, kTrialSend);
  if (!await(ring, of(kTrialSend, 1))) return refuse(why, "sending with io_uring", EOPNOTSUPP);
  uringPreparePoll(uringEntry(ring), pair[1], POLLIN, kTrialPoll);
  if (!await(ring, of(kTrialPoll, 1))) return refuse(why, "polling with io_uring", EOPNOTSUPP);
  // this also ends a receive that goes on: no completion of it may arrive later
  bool receiving = ring->receiving == Receiving::kMany, canceled = false;
  uringPrepareCancelAll(uringEntry(ring), kTrialCancel);
  const bool ended = await(ring, [&receiving, &canceled](const io_uring_cqe &cqe) {
    if (cqe.user_data == kTrialReceive && !(cqe.flags & IORING_CQE_F_MORE)) receiving = false;
    if (cqe.user_data == kTrialCancel && cqe.res >= 0) canceled = true;
    return canceled && !receiving;
  });
  return ended || refuse(why, "canceling with io_uring", EOPNOTSUPP);
}

bool uringOpen(Uring *ring, const UringOptions &options, std::string *why) {
  io_uring_params params;
  int pair[2];
  const bool noticed = options.noticeFd >= 0;
  bool good = openRing(ring, noticed, &params, why) && mapRing(ring, params, why) && addBuffers(ring, options, why);
  if (good && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
    good = refuse(why, "socketpair", errno);
  else if (good) {
    good = tryAll(ring, pair, why);
    close(pair[0]);
    close(pair[1]);
  }
  int noticeFd = options.noticeFd;
  if (good && noticed && registerWith(ring->fd, IORING_REGISTER_EVENTFD, &noticeFd) < 0)
    good = refuse(why, "io_uring_register of an eventfd", errno);
  if (good && noticed) uringNotice(ring, false);
  if (!good) uringClose(ring);
  return good;
}

}  // namespace tsb

#endif  // TSB_HAVE_URING
