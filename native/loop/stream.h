/*
 * The state of one handle: kept bytes, unsent bytes, input to be delivered again, and TLS. This part makes the records. It
 * does no input or output of its own and depends on no backend, so that tests can supply their own.
 *
 * Three groups of functions: what a backend calls, what JavaScript calls, and the table of all handles.
 */
#pragma once

#include <sys/types.h>

#include <vector>

#include "bytes.h"
#include "loop/handshakes.h"
#include "loop/loop.h"
#include "loop/outbox.h"
#include "tls/tls.h"

namespace tsb {

struct Lane;

enum class StreamKind : uint8_t {
  kFree,     // in the free list
  kClosing,  // until the next wait, so that its number is not reused in this turn
  kConnection,
  kListener,
  kWatch,
};

/** State that belongs to backend_epoll.cc. */
struct EpollPart {
  /** the events that the kernel watches for; 0 = not registered */
  uint32_t armed;
  /** the kernel reported that there is something to receive, and the end of it has not been seen */
  bool readable;
};

/** State that belongs to backend_uring.cc. */
struct UringPart {
  /** tells this use of the stream from earlier ones in the completions of the kernel */
  uint16_t tag;
  /** in the list of streams for which something may have to be submitted */
  bool listed;
  /** a receive, or the poll of a listener or watch, is under way in the kernel */
  bool receiving;
  /** and is being canceled */
  bool canceling;
  /** a poll for output is under way */
  bool polling;
  /** more comes than one turn takes: it is received by system calls into the arena, as long as that lasts */
  bool saturated;
  /** the kernel reported the end of the stream */
  bool ended;
  /** and it has not been passed on */
  bool endDue;
  int endResult;
};

/** Never moves: the kernel and TLS keep its address. */
struct alignas(64) Stream {
  /* what every event needs: two cache lines */
  Streams *streams;
  /** set by attach() */
  Lane *lane;
  /** 0 for the loop's own watches */
  int handle;
  int fd;
  StreamKind kind;
  /** input is wanted; for a listener: accepting */
  bool reading;
  bool connecting;
  /** connect() ended at once, with connectResult, which is reported in the next turn */
  bool connectEnded;
  /** in the lane's queue: because of a receive, of a failure, or of what only the backend knows */
  bool queued;
  /** there are bytes that the kernel does not announce again: kept ones, bytes inside TLS, or more in the socket */
  bool receiveDue;
  /** receiving was stopped and started: the kept bytes come again, with or without new ones */
  bool redeliver;
  /** the TLS handshake is under way: what arrives belongs to it, whether reading is on or not */
  bool shaking;
  /** a step of the handshake has been taken, or has begun */
  bool stepped;
  /** the stream has ended at endResult (0, or -errno), which is not reported yet because kept bytes come first */
  bool endHeld;
  /** the backend knows that the stream has ended or broken behind what the socket holds, or may have */
  bool ending;
  bool unixListener;
  /** what failed was sending */
  bool sendFailed;
  /** bytes that were to be sent are lost: nothing may be sent behind them */
  bool sendBroken;
  /** turn of the last RECV or READABLE record */
  uint32_t lastTurn;
  UringPart uring;
  /** most bytes of the next receive that brings any; 0 = no limit */
  uint32_t recvLimit;
  /** null on a plain connection */
  TlsConn *tls;
  /** of the handshake: in a thread, or with a result that has not been taken yet; else null */
  Handshake *step;
  Bytes kept;
  /** what the backend has received ahead of the records, behind the kept bytes */
  Bytes held;
  /** what the kernel did not take, and what was to be sent since */
  Bytes unsent;
  OutboxPart outbox;

  EpollPart epoll;
  /** -errno of a failure that no call returned; the handle's next record reports it. 0 = none */
  int failed;
  int endResult;
  int connectResult;
  /** of the loop's own watches: called instead of making a record */
  void (*onReadable)(void *context);
  void *context;
  /** see streamRest; the TLS records until then */
  bool rested;
  /** TLS is encrypting: what it sends is no answer to the peer */
  bool encrypting;
  /** bytes that TLS has sent of itself since nothing was unsent */
  size_t answered;
  uint64_t restedTraffic;
};
static_assert(sizeof(void *) != 8 || offsetof(Stream, epoll) <= 128, "what every event needs takes more than two cache lines");

/**
 * The streams that one thread works on during a wait, and what they share. Between two waits everything belongs to the
 * thread that calls wait().
 */
struct Lane {
  Turn *turn;
  Section *section;
  size_t recvMax;
  /** how many belong to it */
  int streams;
  /** streams whose next record does not depend on the kernel */
  std::vector<Stream *> due;
  /** scratch of laneDeliver */
  std::vector<Stream *> delivering;
  std::vector<Stream *> served;
  TlsPool tlsPool;
  Outbox outbox;
  /** bytes that were received and sent, ever */
  uint64_t received;
  uint64_t sent;
};

inline bool streamLive(const Stream *s) { return s->kind != StreamKind::kFree && s->kind != StreamKind::kClosing; }

/** A thread works on the stream's TlsConn: no other thread may touch it. */
inline bool streamAway(const Stream *s) { return s->step && !s->step->done; }

/* ---- for backends ---- */

/** Begins a turn; the first thing in a wait(). */
void turnBegin(Loop *loop);
/** A lane of a loop that is being made. Lanes are added in their order. */
void laneAdd(Loop *loop, Lane *lane);
/** Gives a stream its lane. `ofHand`: a connection belongs to that of a hand, if there are any. */
void laneJoin(Loop *loop, Stream *s, bool ofHand);
void laneLeave(Stream *s);
/** Calls work(lane) for each lane that is `busy`: for those of the hands in their threads, for the first one here. */
void lanesWork(Loop *loop, bool (*busy)(const Lane *lane), void (*work)(Lane *lane));
/** Calls work(lane) in the thread of the lane. */
void laneCall(const Loop *loop, Lane *lane, void (*work)(Lane *lane));

/**
 * Calls `work` for each stream in the lane's queue. `work` returns false when the turn has no room for the stream's next
 * record, and the stream then comes first in the next turn; a stream that was served and has more comes behind those. So
 * each of many saturated streams gets its share. Part of the section is left to the events of the turn.
 */
void laneDeliver(Lane *lane, bool (*work)(Stream *stream));
/** Puts a stream in its lane's queue. */
void streamQueue(Stream *s);
/** Likewise, because a receive is due. */
void streamQueueReceive(Stream *s);

/**
 * True unless a TLS peer does not receive what it makes OpenSSL answer (key updates, alerts): the answers would pile up here
 * without end. Data does not count: a server that is sending a result takes the next request only after that.
 */
inline bool streamTakesAnswers(const Stream *s) {
  return s->unsent.length() <= kTlsUnsentMax || s->answered <= kTlsUnsentMax;
}

/** True when bytes may be received for a connection. */
inline bool streamWants(const Stream *s) {
  if (s->tls) return !streamAway(s) && (s->shaking || s->reading) && streamTakesAnswers(s);
  return s->reading && !s->connecting;
}

/** True when the next delivery, or the next step of a handshake, does not depend on the socket. When both are true after
 *  a report, the backend queues a receive, because nothing else announces it. */
inline bool streamHasInput(const Stream *s) { return s->tls ? tlsHasInput(s->tls) : s->endHeld; }

enum class Offer {
  kReceive,  // receive into the place
  kDeliver,  // nothing to receive first: call streamReceived with -EAGAIN
  kNothing,  // input is not wanted, or what there was to report has been reported
  kNoRoom,   // the turn has no room: ask again in the next one
};

struct Place {
  uint8_t *bytes;
  size_t most;
};

/** Where the next bytes of a connection should be received. A backend that cannot choose the place does not ask. */
Offer streamPlace(Stream *s, Place *place);
/**
 * Bytes arrived (n > 0), in the place or elsewhere; the stream ended (0) or broke (-errno); nothing is there (-EAGAIN).
 * Returns false when the turn has no room: then the backend calls again in the next turn. With a place there is room.
 */
bool streamReceived(Stream *s, const uint8_t *bytes, ssize_t n);
enum class Taken {
  kInPlace,  // the record points to the bytes: they must stay until the next wait has sent
  kCopied,
  kRefused,  // the turn has no room for them: the backend reports them in a later one
};

/** Like streamReceived(), for n > 0 bytes at an offset of the arena, which need not be copied. */
Taken streamReceivedAt(Stream *s, size_t offset, size_t n);
/** n of the unsent bytes have been sent, or sending failed with -errno. */
void streamSent(Stream *s, ssize_t n);
/** 0 or -errno */
void streamConnected(Stream *s, int result);
/** A descriptor or -errno. Asks for room first: section->full(). */
void streamAccepted(Stream *s, int result);
void streamReadable(Stream *s);
/** Reports a failure that has no other record. Without it the connection or listener would silently stop working. */
void streamFailed(Stream *s, int err);
/** Sending failed: what is unsent is dropped, a DRAIN record reports the failure, and nothing more is sent. */
void streamSendFailed(Stream *s, int err);

/* ---- for JavaScript; by handle ---- */

int streamOpen(Streams *streams, int fd);
/** Likewise, for a connection that a listener has accepted. Tells its addresses in the ring (kNamesAt). */
int streamAccept(Streams *streams, int fd);
/** `fd` < 0: makes the socket. The descriptor is taken over, whatever is returned. */
int streamConnect(Streams *streams, int fd, const sockaddr *addr, socklen_t length);
int streamListen(Streams *streams, int fd);
int streamListenStart(Streams *streams, int handle, bool on);
int streamWatch(Streams *streams, int fd);
int streamFd(Streams *streams, int handle);
int streamClose(Streams *streams, int handle);
/** As close, and ends the connection even if another process has its descriptor too. */
int streamHangUp(Streams *streams, int handle);
/** As close, but returns the descriptor, open. */
int streamDetach(Streams *streams, int handle);

int streamRecvStart(Streams *streams, int handle);
int streamRecvStop(Streams *streams, int handle);
/** Stops a connection that a handover has described, early: the kernel ends its receive in the next wait. */
int streamRest(Streams *streams, int handle);
/** The connections of streamRest() for which something has been received or sent since. */
std::vector<int> streamsStirred(const Streams *streams);
/** Stops every connection but one. Returns the handles of those that have unsent bytes. */
std::vector<int> streamRecvStopAll(Streams *streams, int except);
int streamRecvLimit(Streams *streams, int handle, int most);
/** 1 when a stream that is not received from has ended or broken, with nothing to receive before that; else 0. */
int streamEnded(Streams *streams, int handle);
int streamKeep(Streams *streams, int handle, const uint8_t *bytes, size_t length);
int streamKeptLength(Streams *streams, int handle);
/** Length of the kept bytes and of those that have been received, and decrypted or not, and not reported yet. */
int streamBuffered(Streams *streams, int handle);
/** Off: the backend receives nothing that it does not report at once, so that what a stopped stream has not delivered is
 *  in the kernel, and recvLimit is exact. */
void streamReceiveAhead(Streams *streams, bool on);
/** Copies the kept bytes, streamKeptLength() many, into `into`. They stay kept. */
int streamCopyKept(Streams *streams, int handle, uint8_t *into);
/** streamKeep(), then streamRecvStop(). */
int streamPark(Streams *streams, int handle, const uint8_t *bytes, size_t length);
/** Moves the kept bytes into the arena, and starts receiving. Returns their offset, -1 when there are none, or -ENOBUFS without
 *  room there: then the next turn delivers them. */
int streamResume(Streams *streams, int handle);
/** Starts receiving from a connection that was just accepted. Returns the offset of what it has sent already, or -1. */
int streamRecvFirst(Streams *streams, int handle);

/** Sends in the next wait. Returns the length of what the kernel did not take before and of what waits behind it. */
int streamSend(Streams *streams, int handle, const uint8_t *bytes, size_t length, Origin origin);
/** Sends bytes as they are, before anything else of this process: what streamTakeUnsent() gave. Returns as streamSend(). */
int streamSendRecords(Streams *streams, int handle, const uint8_t *bytes, size_t length);
/** Likewise; what is queued for the next wait is sent first, so that the answer is exact. */
int streamUnsent(Streams *streams, int handle);
/** Sends what every connection has queued for the next wait. */
void streamSendQueued(Streams *streams);
/** Moves the unsent bytes, streamUnsent() many, into `into`. */
int streamTakeUnsent(Streams *streams, int handle, uint8_t *into);

/** Puts TLS on a connection and begins the handshake with the bytes given, which were received before; kTls follows. The
 *  TLS connection is owned by the stream from then on, whatever is returned. */
int streamTlsStart(Streams *streams, int handle, TlsConn *conn, const uint8_t *bytes, size_t length);
/** Puts a TLS connection of another process on a plain connection, or in the place of such a one. It is owned by the stream
 *  from then on, whatever is returned. */
int streamTlsContinue(Streams *streams, int handle, TlsConn *conn);
/** Freezes the TLS connections that another process can continue, apart from `except`. Returns the handles of those that
 *  none can. */
std::vector<int> streamsTlsFreeze(Streams *streams, int except);
void streamsTlsThaw(Streams *streams);
/** The TLS connection of a handle; null without, and while a step of its handshake is taken elsewhere. */
TlsConn *streamTls(Streams *streams, int handle);

/* ---- between handles.cc and handover.cc ---- */

/** The stream of a connection, or null. */
Stream *connectionOf(const Streams *streams, int handle);
void stopReceiving(Stream *s);
/** The outlet of a TLS connection: the context is its stream. */
int streamSendRecord(void *stream, const uint8_t *bytes, size_t length);

/* ---- all handles of a loop ---- */

struct Streams {
  Loop *loop;
  Turn *turn;
  /** by handle; index 0 stays empty so that a zeroed field is never a valid handle */
  std::vector<Stream *> all;
  std::vector<int> freeHandles;
  /** closed since the last wait */
  std::vector<int> closing;
  /** see streamReceiveAhead */
  bool receiveAhead = true;
  /** the loop's own watch of its wake-up descriptor */
  Stream wake;
  /** null without threads for them */
  Handshakes *handshakes = nullptr;
  /** an eventfd that says that steps are done, and its watch */
  int handshakesFd = -1;
  Stream handshakesDone;
};

/** Makes the loop of that backend and the table. Returns null with *err = -errno. */
Streams *streamsNew(const LoopOps *ops, Turn *turn, const LoopOptions &options, int *err);
/** Wipes the secrets of the TLS connections that another process owns: this one never uses them again. */
void streamsForgetFrozen(Streams *streams);
/** Closes every descriptor of every handle but those that are only watched, and frees all. */
void streamsEnd(Streams *streams);
/** Watches a descriptor for the loop itself: it has no handle, `onReadable` is called in the wait. Returns 0 or -errno. */
int watchOwn(Streams *streams, Stream *stream, int fd, void (*onReadable)(void *context), void *context);
void unwatchOwn(Stream *stream);

}  // namespace tsb
