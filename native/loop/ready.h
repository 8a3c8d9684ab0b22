/* What backends do by system calls when the kernel says that a descriptor is ready. */
#pragma once

#include <errno.h>

#include "loop/stream.h"

namespace tsb {

/** Sends what is unsent, as far as the socket takes it. */
void readySend(Stream *s);
/** Calls connect(). Returns false when that has ended at once: the next turn reports it (readyWork). */
bool readyConnectStart(Stream *s, const sockaddr *addr, socklen_t length);
/** A connecting socket is writable or broken: reports the result. */
void readyConnect(Stream *s);
/** Accepts and reports connections, at most kAcceptMax. */
void readyAccept(Stream *s);
/** recv() into the place: the number of bytes, 0 for the end, or -errno; -EAGAIN when nothing is there. */
ssize_t readyRecv(const Stream *s, const Place &place);

/**
 * The next delivery of a connection; `Receive` brings its bytes, as readyRecv() does. Returns false when the turn has no room
 * for it.
 */
template <ssize_t (*Receive)(Stream *s, const Place &place)>
bool readyReceive(Stream *s) {
  Place place;
  switch (streamPlace(s, &place)) {
    case Offer::kNoRoom:
      return false;
    case Offer::kNothing:
      return true;
    case Offer::kDeliver:
      return streamReceived(s, nullptr, -EAGAIN);
    case Offer::kReceive:
      break;
  }
  const ssize_t n = Receive(s, place);
  return streamReceived(s, place.bytes, n);
}

/**
 * The next record of a queued stream; `Due` says whether there is something to receive that the kernel does not announce.
 * Returns false when the turn has no room for it.
 */
template <bool (*Due)(const Stream *s), ssize_t (*Receive)(Stream *s, const Place &place)>
bool readyWork(Stream *s) {
  if (s->connectEnded && s->connecting) {
    if (s->lane->section->full()) return false;
    s->connectEnded = false;
    streamConnected(s, s->connectResult);
    readySend(s);
  } else if (s->receiveDue) {
    if ((s->redeliver || s->shaking || Due(s)) && !readyReceive<Receive>(s)) return false;
    s->receiveDue = Due(s);
  }
  return true;
}

}  // namespace tsb
