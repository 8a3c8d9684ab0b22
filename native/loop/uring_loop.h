/* The state of an io_uring loop, and what it asks of the kernel and hears from it. Shared by the files of the backend. */
#pragma once

#include <sys/socket.h>

#include <vector>

#include "loop/stream.h"
#include "loop/uring.h"

namespace tsb {

/** In the low bits of user_data: a Stream is aligned to 64 bytes. */
enum UringOp : uint64_t { kOpReceive, kOpPollOut, kOpSend, kOpCancel };

struct UringLoop : Loop {
  Uring ring;
  Lane lane;
  uint16_t lastTag;
  /** streams for which something may have to be submitted */
  std::vector<Stream *> listed;
  /** user_data of requests to be canceled */
  std::vector<uint64_t> cancels;
  /** buffers that the records of this turn point to */
  std::vector<unsigned> lent;
  /** requests that have not completed, without sends and cancellations */
  int underWay;
  /** completions of ring.completions whose requests have been counted off */
  size_t counted;
  /** completions that are being handled */
  std::vector<io_uring_cqe> handling;
  /* of sends with several parts */
  std::vector<msghdr> messages;
  std::vector<iovec> parts;
};

/** The user_data of a request. */
uint64_t uringDataOf(const Stream *s, UringOp op);
UringOp uringOpOf(const io_uring_cqe &cqe);
/** The stream of a request, or null when it has been detached since. */
Stream *uringStreamOf(uint64_t data);

/** The stream needs something from the kernel, or may: the next wait looks. */
void uringList(Stream *s);
/** Entries for what the outbox holds. Returns their number; each completes as it is submitted. */
unsigned uringSubmitSends(UringLoop *l);
/** Entries for what the listed streams need. */
void uringSubmitListed(UringLoop *l);
/** Entries for l->cancels. */
void uringSubmitCancels(UringLoop *l);
/** Submits, and waits until `least` completions are there or timeoutMs have passed. Counts off what has completed. */
void uringWait(UringLoop *l, unsigned least, int timeoutMs);

inline UringLoop *uringLoopOf(const Stream *s) { return static_cast<UringLoop *>(s->streams->loop); }

}  // namespace tsb
