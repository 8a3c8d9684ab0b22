/*
 * An io_uring instance and its ring of receive buffers, made with system calls alone: the kernel's header is enough, at
 * build time and at run time. This part knows the rings, and neither streams nor turns.
 *
 * What the kernel can do is found by trying (uringOpen): kernels from 5.19 on differ, and containers filter system calls.
 */
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "loop/turn.h"
#include "loop/uring_have.h"

namespace tsb {

/** Size of a receive buffer: PostgreSQL sends pieces of this size. */
constexpr size_t kBufferSize = 8192;
/** Receive buffers of a ring: powers of two. */
constexpr unsigned kBufferCount = kBufferSpace / kBufferSize;
constexpr unsigned kHandBufferCount = kHandBuffers / kBufferSize;
/** A request that goes on receiving ends after so many bytes: a stream with much data does not take all buffers, and a
 *  stopped one brings no more than this. */
constexpr unsigned kReceiveMost = kBufferSize;

/** How the kernel receives: the best way that works is found when the ring is opened. */
enum class Receiving {
  kOnce,  // one receive per request (5.19)
  kMany,  // requests that go on receiving, and end by themselves after a number of bytes (6.17)
};
/* Without that limit (6.0) one stream takes all buffers at once, and a stopped stream brings more than is wanted. */

/** What is tried first. Tests lower it to what older kernels have. */
struct UringBest {
  Receiving receiving;
  /** SINGLE_ISSUER and DEFER_TASKRUN */
  bool deferred;
};
extern UringBest uringBest;

struct Uring {
  int fd = -1;
  Receiving receiving = Receiving::kOnce;
  /** completions that have been taken from the kernel and not been handled yet */
  std::vector<io_uring_cqe> completions;

  /* of the rings, which the kernel shares */
  unsigned *sqFlags = nullptr;
  unsigned *cqFlags = nullptr;
  void *ringMemory = nullptr;
  size_t ringSize = 0;
  io_uring_sqe *entries = nullptr;
  size_t entriesSize = 0;
  unsigned *sqHead = nullptr;
  unsigned *sqTail = nullptr;
  unsigned sqMask = 0;
  unsigned sqCount = 0;
  unsigned *cqHead = nullptr;
  unsigned *cqTail = nullptr;
  unsigned cqMask = 0;
  io_uring_cqe *cqes = nullptr;

  /* of the receive buffers */
  io_uring_buf_ring *bufferRing = nullptr;
  uint8_t *buffers = nullptr;
  unsigned bufferCount = 0;
  uint16_t bufferTail = 0;
};

struct UringOptions {
  /** memory of the receive buffers, and their number, a power of two */
  uint8_t *buffers;
  unsigned bufferCount;
  /** an eventfd for uringNotice; -1 = none */
  int noticeFd;
};

/**
 * Opens a ring for the calling thread, and tries every operation that the backend uses. Returns false, with the reason in
 * *why, when the kernel refuses one; then nothing is left open.
 */
bool uringOpen(Uring *ring, const UringOptions &options, std::string *why);
/** Ends everything that is under way. */
void uringClose(Uring *ring);

/** The next free entry, zeroed. Submits those before it when all are taken. */
io_uring_sqe *uringEntry(Uring *ring);
/** True when a uringEnter would bring completions. Any thread may ask. Only with a noticeFd. */
bool uringHasNews(const Uring *ring);
/** Says whether the kernel writes to the noticeFd as soon as there is news. Ask for news afterwards. */
void uringNotice(Uring *ring, bool on);

/** Entries that have not been submitted. */
unsigned uringPending(const Uring *ring);
/**
 * Submits all entries and waits until `least` completions are there or timeoutMs have passed (-1 = no limit); completions
 * are appended to ring->completions. Returns 0, also after a signal or the time-out, or -errno when the kernel does not
 * take the entries.
 */
int uringEnter(Uring *ring, unsigned least, int timeoutMs);
/** Takes back the entries that the kernel did not take. Returns copies of them, oldest first. */
std::vector<io_uring_sqe> uringTakeBack(Uring *ring);

/** The buffer of a completion with IORING_CQE_F_BUFFER. */
inline unsigned uringBufferOf(const io_uring_cqe &cqe) { return cqe.flags >> IORING_CQE_BUFFER_SHIFT; }
inline uint8_t *uringBuffer(const Uring *ring, unsigned index) { return ring->buffers + index * kBufferSize; }
/** Gives a buffer back to the kernel. */
void uringGiveBack(Uring *ring, unsigned index);

/** Fills an entry that receives into the ring's buffers. */
void uringPrepareReceive(const Uring *ring, io_uring_sqe *entry, int fd, uint64_t data);
void uringPreparePoll(io_uring_sqe *entry, int fd, unsigned events, uint64_t data);
/** Without blocking: what the socket does not take is not sent. */
void uringPrepareSend(io_uring_sqe *entry, int fd, const void *bytes, size_t length, uint64_t data);
/** Cancels the requests with user_data `target`; `data` is completed only when there is none. */
void uringPrepareCancel(io_uring_sqe *entry, uint64_t target, uint64_t data);
/** Likewise, all requests of the ring. */
void uringPrepareCancelAll(io_uring_sqe *entry, uint64_t data);

}  // namespace tsb
