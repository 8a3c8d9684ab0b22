/* See ready.h. */
#include "loop/ready.h"

#include <errno.h>
#include <sys/socket.h>

#include "plainio.h"

namespace tsb {

void readySend(Stream *s) {
  if (s->unsent.empty()) return;
  const ssize_t n = sendRetry(s->fd, s->unsent.first(), s->unsent.length());
  if (n >= 0)
    streamSent(s, n);
  else if (!wouldBlock(errno))
    streamSent(s, -errno);
}

bool readyConnectStart(Stream *s, const sockaddr *addr, socklen_t length) {
  const int err = ::connect(s->fd, addr, length) < 0 ? errno : 0;
  if (err == EINPROGRESS || err == EINTR) return true;
  s->connectEnded = true;
  s->connectResult = -err;
  streamQueue(s);
  return false;
}

void readyConnect(Stream *s) {
  int err = 0;
  socklen_t length = sizeof(err);
  if (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &err, &length) < 0) err = errno;
  streamConnected(s, -err);
}

ssize_t readyRecv(const Stream *s, const Place &place) {
  const ssize_t n = recvRetry(s->fd, place.bytes, place.most);
  if (n >= 0) return n;
  return wouldBlock(errno) ? -EAGAIN : -errno;
}

void readyAccept(Stream *s) {
  bool accepted = false;
  for (int i = 0; i < kAcceptMax && !s->lane->section->full(); i++) {
    const int fd = accept4(s->fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      streamAccepted(s, fd);
      accepted = true;
      continue;
    }
    const int err = errno;
    // the peer gave up while it was queued; PgBouncer does not log that either
    if (err == EINTR || err == ECONNABORTED) continue;
    // Do not report an error in the turn in which an accept succeeded: when the last free descriptor is used up, the kernel
    // answers EMFILE even if no connection waits. If one does, the next turn reports it.
    if (!accepted && !wouldBlock(err)) streamAccepted(s, -err);
    return;
  }
}

}  // namespace tsb
