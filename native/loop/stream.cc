/*
 * What happens on one stream: a backend reports what the kernel did, and this part turns it into records. See stream.h.
 */
#include "loop/stream.h"

#include <errno.h>
#include <string.h>

#include <new>

namespace tsb {

static void report(Stream *s, Kind kind, int result, int offset) {
  s->lane->section->add(kind, s->handle, result, offset);
}

/* ---- the queue of a lane ---- */

void streamQueue(Stream *s) {
  if (s->queued) return;
  s->queued = true;
  s->lane->due.push_back(s);
}

void streamQueueReceive(Stream *s) {
  if (s->receiveDue) return;
  s->receiveDue = true;
  streamQueue(s);
}

/** The unsent bytes cannot be sent any more. */
static void dropUnsent(Stream *s, int result) {
  s->sendBroken = true;
  s->unsent.clear();
  report(s, kDrain, result, 0);
}

/** The end of a stream is reported once: reading stops by itself. */
static void reportEnd(Stream *s, int result) {
  s->reading = s->redeliver = false;
  s->lastTurn = s->lane->turn->number;
  report(s, kRecv, result, 0);
}

static void reportTls(Stream *s, int result) {
  s->shaking = false;
  if (result < 0) s->reading = false;
  if (!s->reading) s->streams->loop->ops->receive(s->streams->loop, s, false);
  report(s, kTls, result, 0);
}

/* Reports a failure by the record that the caller waits for. Without one the failure is kept for later. */
static bool reportFailure(Stream *s) {
  if (s->lane->section->full()) return false;
  const int err = s->failed;
  if (s->kind == StreamKind::kListener)
    streamAccepted(s, err);
  else if (s->connecting)
    streamConnected(s, err);
  else if (s->sendFailed || !s->unsent.empty())
    dropUnsent(s, err);
  else if (s->shaking)
    reportTls(s, err);
  else if (s->reading)
    reportEnd(s, err);
  else {
    // streamRecvStart() asks again
    s->receiveDue = false;
    return true;
  }
  s->failed = 0;
  s->sendFailed = false;
  return true;
}

void laneDeliver(Lane *lane, bool (*work)(Stream *stream)) {
  lane->section->reserved = lane->section->size() / kEventsPart;
  lane->delivering.swap(lane->due);
  for (Stream *s : lane->delivering) {
    if (!streamLive(s)) continue;
    s->queued = false;
    if (!(s->failed != 0 ? reportFailure(s) : work(s)))
      streamQueue(s);
    else if (s->receiveDue)
      lane->served.push_back(s);
  }
  lane->delivering.clear();
  lane->section->reserved = 0;
  for (Stream *s : lane->served) streamQueue(s);
  lane->served.clear();
}

/* ---- receiving ---- */

/* Else a stream with many kept bytes would wait for room that no turn has. */
static_assert(kHandHalf - kHandHalf / kEventsPart >= kKeptMax + kRecvRoomLeast, "the half of a hand is too small");

enum class Room { kYes, kNo, kNever };

/** Whether the turn has room for the kept bytes and `n` more. Ends a stream that keeps too many. */
static Room roomFor(Stream *s, size_t n) {
  const Lane *lane = s->lane;
  if (s->lastTurn == lane->turn->number || lane->section->full()) return Room::kNo;
  if (s->kept.length() > kKeptMax) {
    reportEnd(s, -EMSGSIZE);
    return Room::kNever;
  }
  return lane->section->room() < s->kept.length() + n ? Room::kNo : Room::kYes;
}

static size_t leastRoom(const Lane *lane) { return lane->recvMax < kRecvRoomLeast ? lane->recvMax : kRecvRoomLeast; }

/** The place for new bytes, behind the kept ones. */
static Place placeBehindKept(const Stream *s) {
  const Lane *lane = s->lane;
  const size_t room = lane->section->room() - s->kept.length();
  return {lane->section->place() + s->kept.length(), room < lane->recvMax ? room : lane->recvMax};
}

/** Reports the kept bytes and the n new ones in the place behind them. */
static void deliver(Stream *s, size_t n) {
  Section *section = s->lane->section;
  const size_t length = s->kept.length() + n;
  if (!s->kept.empty()) {
    memcpy(section->place(), s->kept.first(), s->kept.length());
    s->kept.clear();
  }
  s->lane->received += n;
  s->redeliver = false;
  s->lastTurn = s->lane->turn->number;
  report(s, kRecv, static_cast<int>(length), section->take(length));
}

/** No new bytes: the end (0), -errno, or -EAGAIN when nothing is there. Kept bytes go before the end. */
static void deliverNothing(Stream *s, int result) {
  if (s->redeliver) {
    if (result != -EAGAIN) {
      s->endHeld = true;
      s->endResult = result;
    }
    deliver(s, 0);
    return;
  }
  if (s->endHeld) {
    s->endHeld = false;
    result = s->endResult;
  }
  if (result != -EAGAIN) reportEnd(s, result);
}

/** The kernel had these bytes already when receiving was stopped. */
static void keepForLater(Stream *s, const uint8_t *bytes, ssize_t n) {
  if (n > 0) {
    s->lane->received += static_cast<uint64_t>(n);
    if (!s->kept.append(bytes, static_cast<size_t>(n))) streamFailed(s, -ENOMEM);
  } else if (n != -EAGAIN) {
    s->endHeld = true;
    s->endResult = static_cast<int>(n);
  }
}

/* ---- receiving with TLS ---- */

/** Reports the kept bytes and what is decrypted, when the turn has room. */
static void deliverTls(Stream *s) {
  if (roomFor(s, leastRoom(s->lane)) != Room::kYes) return;
  const Place place = placeBehindKept(s);
  const ssize_t n = tlsRead(s->tls, place.bytes, place.most);
  if (n > 0) {
    deliver(s, static_cast<size_t>(n));
  } else if (s->redeliver) {
    if (n != kTlsNothing) s->tls->endDue = true;
    deliver(s, 0);
  } else if (n != kTlsNothing) {
    reportEnd(s, static_cast<int>(n));
  }
}

/** Hands the next step of a handshake to a thread. Returns false when it has to be taken here. */
static bool beginStep(Stream *s) {
  if (!s->streams->handshakes) return false;
  Handshake *step = new (std::nothrow) Handshake();
  if (!step) return false;
  step->conn = s->tls;
  step->stream = s;
  s->step = step;
  if (s->streams->handshakes->begin(step)) return true;
  s->step = nullptr;
  delete step;
  return false;
}

/** Takes the result of a step that a thread has taken, and sends what that has to say. */
static int takeStep(Stream *s) {
  Handshake *step = s->step;
  s->step = nullptr;
  int result = step->result;
  if (!step->out.empty()) {
    const int res = outboxPutRecords(s, step->out.first(), step->out.length(), Origin::kCaller);
    if (res < 0) result = res;
  }
  step->out.clear();
  delete step;
  return result;
}

/** True when a step has something to work with: input, the end of the stream, or the first message of the connecting side,
 *  which needs no input. */
static bool stepDue(const Stream *s) {
  const TlsConn *conn = s->tls;
  if (tlsHasInput(conn) || conn->socketEnded || conn->recvErrno != 0) return true;
  return !s->stepped && !conn->session.server;
}

/** Returns true when the handshake has ended, or goes on in a thread. */
static bool stepHandshake(Stream *s) {
  int res = s->step ? takeStep(s) : 0;
  // input may have arrived since that step began
  if (res == 0 && stepDue(s)) {
    s->stepped = true;
    if (beginStep(s)) return true;
    res = tlsHandshake(s->tls);
  }
  if (res != 0) reportTls(s, res < 0 ? res : 0);
  return res != 0;
}

static Offer placeTls(Stream *s, Place *place) {
  if (streamAway(s)) return Offer::kNothing;
  if (s->shaking) {
    if (s->lane->section->full()) return Offer::kNoRoom;
    if (stepHandshake(s)) return Offer::kNothing;
  } else {
    const Room room = roomFor(s, leastRoom(s->lane));
    if (room != Room::kYes) return room == Room::kNever ? Offer::kNothing : Offer::kNoRoom;
    if (s->tls->ended || tlsHasInput(s->tls)) return Offer::kDeliver;
  }
  place->most = tlsPlace(s->tls, &place->bytes);
  return place->most > 0 ? Offer::kReceive : Offer::kDeliver;
}

static bool receivedTls(Stream *s, const uint8_t *bytes, ssize_t n) {
  if (streamAway(s) || s->lane->section->full() || !tlsReceived(s->tls, bytes, n)) return false;
  // without room, or while nothing is wanted, the bytes stay inside TLS
  if (s->shaking)
    stepHandshake(s);
  else if (streamWants(s) || s->redeliver)
    deliverTls(s);
  return true;
}

/* ---- what backends report ---- */

Offer streamPlace(Stream *s, Place *place) {
  if (!s->redeliver && !streamWants(s)) return Offer::kNothing;
  if (s->tls) return placeTls(s, place);
  const Room room = roomFor(s, leastRoom(s->lane));
  if (room != Room::kYes) return room == Room::kNever ? Offer::kNothing : Offer::kNoRoom;
  if (s->endHeld) return Offer::kDeliver;
  *place = placeBehindKept(s);
  if (s->recvLimit > 0 && s->recvLimit < place->most) place->most = s->recvLimit;
  return Offer::kReceive;
}

bool streamReceived(Stream *s, const uint8_t *bytes, ssize_t n) {
  if (s->tls) return receivedTls(s, bytes, n);
  if (!s->reading) {
    keepForLater(s, bytes, n);
    return true;
  }
  uint8_t *place = s->lane->section->place() + s->kept.length();
  if (n <= 0 || bytes != place) {
    const Room room = roomFor(s, n > 0 ? static_cast<size_t>(n) : 0);
    if (room != Room::kYes) return room == Room::kNever;
    if (n <= 0) {
      deliverNothing(s, static_cast<int>(n));
      return true;
    }
    memcpy(place, bytes, static_cast<size_t>(n));
  }
  s->recvLimit = 0;
  deliver(s, static_cast<size_t>(n));
  return true;
}

Taken streamReceivedAt(Stream *s, size_t offset, size_t n) {
  if (s->tls || !s->reading || !s->kept.empty()) {
    const uint8_t *bytes = s->lane->turn->arena + offset;
    return streamReceived(s, bytes, static_cast<ssize_t>(n)) ? Taken::kCopied : Taken::kRefused;
  }
  if (s->lastTurn == s->lane->turn->number || s->lane->section->full()) return Taken::kRefused;
  s->recvLimit = 0;
  s->redeliver = false;
  s->lastTurn = s->lane->turn->number;
  s->lane->received += n;
  report(s, kRecv, static_cast<int>(n), static_cast<int>(offset));
  return Taken::kInPlace;
}

void streamSent(Stream *s, ssize_t n) {
  if (n < 0) {
    dropUnsent(s, static_cast<int>(n));
    return;
  }
  s->lane->sent += static_cast<uint64_t>(n);
  s->unsent.drop(static_cast<size_t>(n));
  if (s->unsent.empty()) report(s, kDrain, 0, 0);
}

void streamConnected(Stream *s, int result) {
  s->connecting = false;
  report(s, kConnect, result, 0);
}

void streamAccepted(Stream *s, int result) { report(s, kAccept, result, s->unixListener ? 1 : 0); }

void streamReadable(Stream *s) {
  if (s->onReadable) {
    s->onReadable(s->context);
    return;
  }
  if (s->lastTurn == s->lane->turn->number || s->lane->section->full()) return;
  s->lastTurn = s->lane->turn->number;
  report(s, kReadable, 0, 0);
}

void streamFailed(Stream *s, int err) {
  s->failed = err;
  streamQueue(s);
}

void streamSendFailed(Stream *s, int err) {
  s->sendFailed = s->sendBroken = true;
  streamFailed(s, err);
}

}  // namespace tsb
