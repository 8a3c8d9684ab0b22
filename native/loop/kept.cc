/*
 * Input between two turns: what JavaScript could not handle yet is kept, and comes back when it asks for it. What a new
 * connection has sent already comes at once.
 */
#include <errno.h>
#include <sys/socket.h>

#include "loop/stream.h"

namespace tsb {

int streamKeep(Streams *streams, int handle, const uint8_t *bytes, size_t length) {
  Stream *s = connectionOf(streams, handle);
  if (!s) return -EBADF;
  if (s->kept.append(bytes, length)) return 0;
  // bytes are lost: those that follow would be taken for something else
  streamFailed(s, -ENOMEM);
  return -ENOMEM;
}

int streamKeptLength(Streams *streams, int handle) {
  const Stream *s = connectionOf(streams, handle);
  return s ? static_cast<int>(s->kept.length()) : -EBADF;
}

int streamBuffered(Streams *streams, int handle) {
  const Stream *s = connectionOf(streams, handle);
  if (!s) return -EBADF;
  const size_t inside = s->tls && !streamAway(s) ? tlsBuffered(s->tls) : 0;
  return static_cast<int>(s->kept.length() + s->held.length() + inside);
}

void streamReceiveAhead(Streams *streams, bool on) {
  if (streams->receiveAhead == on) return;
  streams->receiveAhead = on;
  streams->loop->ops->quiesce(streams->loop);
}

int streamCopyKept(Streams *streams, int handle, uint8_t *into) {
  const Stream *s = connectionOf(streams, handle);
  if (!s) return -EBADF;
  if (!s->kept.empty()) memcpy(into, s->kept.first(), s->kept.length());
  return static_cast<int>(s->kept.length());
}

int streamPark(Streams *streams, int handle, const uint8_t *bytes, size_t length) {
  const int err = streamKeep(streams, handle, bytes, length);
  return err < 0 ? err : streamRecvStop(streams, handle);
}

/** Moves the kept bytes into the arena. Returns their offset, -1 if there are none, or -ENOBUFS. */
static int takeKept(Streams *streams, Stream *s) {
  if (s->kept.empty()) return -1;
  const int offset = streams->turn->sideTake(s->kept.length());
  if (offset < 0) return -ENOBUFS;
  streams->turn->tellResumed(static_cast<int32_t>(s->kept.length()));
  memcpy(streams->turn->arena + offset, s->kept.first(), s->kept.length());
  s->kept.clear();
  s->redeliver = false;
  return offset;
}

int streamResume(Streams *streams, int handle) {
  Stream *s = connectionOf(streams, handle);
  if (!s) return -EBADF;
  const int offset = takeKept(streams, s);
  // of a stream that is reading, kept bytes come back only with new ones, unless they are asked for
  if (offset == -ENOBUFS && s->reading) {
    s->redeliver = true;
    streamQueueReceive(s);
  }
  streamRecvStart(streams, handle);
  return offset;
}

/** A startup packet is far shorter. The next record brings what follows. */
static constexpr size_t kFirstMost = 1024;

/** Returns the offset of what a plain connection has sent, or -1. Its end, and an error, are left to the next record. */
static int receiveNow(Stream *s) {
  Turn *turn = s->lane->turn;
  uint8_t bytes[kFirstMost];
  ssize_t n;
  do n = recv(s->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
  while (n < 0 && errno == EINTR);
  if (n <= 0) return -1;
  s->lane->received += static_cast<uint64_t>(n);
  const int offset = turn->sideTake(static_cast<size_t>(n));
  if (offset >= 0) {
    turn->tellResumed(static_cast<int32_t>(n));
    memcpy(turn->arena + offset, bytes, static_cast<size_t>(n));
  } else if (!s->kept.append(bytes, static_cast<size_t>(n))) {
    streamFailed(s, -ENOMEM);
  }
  return offset;
}

int streamRecvFirst(Streams *streams, int handle) {
  Stream *s = connectionOf(streams, handle);
  if (!s) return -EBADF;
  const bool fresh = !s->reading && !s->connecting && !s->tls && s->kept.empty();
  const int offset = fresh ? receiveNow(s) : -1;
  streamRecvStart(streams, handle);
  return offset;
}

}  // namespace tsb
