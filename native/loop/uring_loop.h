/* The state of an io_uring loop, and what it asks of the kernel and hears from it. Shared by the files of the backend. */
#pragma once

#include <sys/socket.h>

#include <string>
#include <vector>

#include "loop/stream.h"
#include "loop/uring.h"

namespace tsb {

/** In the low bits of user_data: a Stream is aligned to 64 bytes. */
enum UringOp : uint64_t { kOpReceive, kOpPollOut, kOpSend, kOpCancel };

/** A ring is submitted to by one thread only: by that of the lane. */
struct UringLane : Lane {
  Uring ring;
  /** streams for which something may have to be submitted */
  std::vector<Stream *> listed;
  /** user_data of requests to be canceled */
  std::vector<uint64_t> cancels;
  /** buffers that the records of this turn point to, and, with hands, of the turn before */
  std::vector<unsigned> lent;
  std::vector<unsigned> lentBefore;
  /** requests that have not completed, without sends and cancellations */
  int underWay;
  /** completions of ring.completions whose requests have been counted off */
  size_t counted;
  /** completions that are being handled */
  std::vector<io_uring_cqe> handling;
  /* of sends with several parts */
  std::vector<msghdr> messages;
  std::vector<iovec> parts;
  /** streams that leave the lane, see uring_cancel.cc */
  std::vector<Stream *> leaving;
  /** as in the loop */
  int noticeFd;
  /** why the ring could not be opened */
  std::string refusal;
};

struct UringLoop : Loop {
  uint16_t lastTag;
  /** the kernel writes to it when a ring of a hand has something, while the loop waits; -1 without hands */
  int noticeFd;
  /** the loop's watch of it */
  Stream notice;
  /** the duty for which connections are being moved, and the next handle to look at */
  bool movedForDuty;
  size_t moveNext;
};

/** The user_data of a request. */
uint64_t uringDataOf(const Stream *s, UringOp op);
UringOp uringOpOf(const io_uring_cqe &cqe);
/** The stream of a request, or null when it has been detached since. */
Stream *uringStreamOf(uint64_t data);

/** Has the processor fetch the stream of a request, if there is one, into its cache. */
void uringFetch(uint64_t data);

/** The stream needs something from the kernel, or may: the next wait looks. */
void uringList(Stream *s);
/** Entries for what the outbox holds. Returns their number; each completes as it is submitted. *large: one is so long that the
 *  socket may well not take all of it. */
unsigned uringSubmitSends(UringLane *l, bool *large);
/** Entries for what the listed streams need. */
void uringSubmitListed(UringLane *l);
/** Entries for l->cancels. */
void uringSubmitCancels(UringLane *l);
/** Submits, and waits until `least` completions are there or timeoutMs have passed. Counts off what has completed. */
void uringWait(UringLane *l, unsigned least, int timeoutMs);

/** Bytes in a buffer are kept for a later turn. */
void uringHold(UringLane *l, Stream *s, unsigned buffer, size_t n);
/** Queues a receive that no completion announces. */
void uringQueueIfDue(Stream *s);

/** What a completion of a receive without bytes says. */
enum class Brings {
  kNothing,  // the request was canceled
  kMore,     // there is something to be received by a system call
  kEnd,      // the stream has ended or broken
};
Brings uringBrings(const io_uring_cqe &cqe);

/* ---- uring_cancel.cc: when nothing may be under way; called between two turns ---- */

/** Ends everything that is under way in a lane, by its thread. */
void uringCancelAll(Lane *lane);
/** As quiesce() and detach() of a backend. */
void uringQuiesce(Loop *loop);
void uringDetach(Loop *loop, Stream *s, bool stays);
/** Moves some of the connections that are not in the lanes where they should be (Duty); the first thing in a wait. */
void uringMoveSome(UringLoop *l);

inline UringLane *uringLane(Lane *lane) { return static_cast<UringLane *>(lane); }
inline UringLane *uringLaneOf(const Stream *s) { return uringLane(s->lane); }

}  // namespace tsb
