/* The table of all handles, and the calls of JavaScript, each of which changes what one stream wants. See stream.h. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <new>

#include "loop/stream.h"
#include "plainio.h"

namespace tsb {

/* ---- the table ---- */

/** The stream of a live handle, or null. */
static Stream *streamOf(const Streams *streams, int handle) {
  if (handle <= 0 || static_cast<size_t>(handle) >= streams->all.size()) return nullptr;
  Stream *s = streams->all[static_cast<size_t>(handle)];
  return streamLive(s) ? s : nullptr;
}

Stream *connectionOf(const Streams *streams, int handle) {
  Stream *s = streamOf(streams, handle);
  return s && s->kind == StreamKind::kConnection ? s : nullptr;
}

/** A free stream, or null with *err. */
static Stream *streamFree(Streams *streams, int *err) {
  if (!streams->freeHandles.empty()) return streams->all[static_cast<size_t>(streams->freeHandles.back())];
  *err = -EMFILE;
  if (streams->all.size() > static_cast<size_t>(kHandlesMax)) return nullptr;
  Stream *s = new (std::nothrow) Stream();
  *err = -ENOMEM;
  if (!s) return nullptr;
  s->handle = static_cast<int>(streams->all.size());
  streams->all.push_back(s);
  streams->freeHandles.push_back(s->handle);
  return s;
}

static int makeNonBlocking(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return -errno;
  return (flags & O_NONBLOCK) || fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0 ? 0 : -errno;
}

/** Everything but the handle begins anew. */
static void streamReset(Stream *s, Streams *streams, int fd, StreamKind kind) {
  const int handle = s->handle;
  *s = Stream();
  s->streams = streams;
  s->handle = handle;
  s->fd = fd;
  s->kind = kind;
  s->lastTurn = streams->turn->number - 1;
}

/** Returns a stream with a handle, or null with *err. The descriptor is non-blocking. */
static Stream *streamOfReady(Streams *streams, int fd, StreamKind kind, int *err) {
  Stream *s = streamFree(streams, err);
  if (!s) return nullptr;
  streamReset(s, streams, fd, kind);
  *err = streams->loop->ops->attach(streams->loop, s);
  if (*err < 0) {
    s->kind = StreamKind::kFree;
    return nullptr;
  }
  streams->freeHandles.pop_back();
  return s;
}

/** Likewise, of any descriptor. */
static Stream *streamNew(Streams *streams, int fd, StreamKind kind, int *err) {
  *err = fd < 0 ? -EBADF : makeNonBlocking(fd);
  return *err < 0 ? nullptr : streamOfReady(streams, fd, kind, err);
}

static void forgetTls(Stream *s) {
  if (streamAway(s)) {
    s->step->stream = nullptr;
    s->step->abandoned.store(true, std::memory_order_relaxed);
  } else if (s->step) {
    handshakeFree(s->step);
  } else {
    tlsConnFree(s->tls);
  }
  s->step = nullptr;
  s->tls = nullptr;
}

void streamsForgetFrozen(Streams *streams) {
  for (Stream *s : streams->all)
    if (s && s->tls && !s->step && s->tls->frozen) forgetTls(s);
}

/** Forgets a handle; its number is free again after the next wait. `stays`: see detach() of the backends. Returns the
 *  descriptor. */
static int forget(Stream *s, bool stays) {
  const int fd = s->fd;
  s->streams->loop->ops->detach(s->streams->loop, s, stays);
  s->streams->turn->forget(s->handle);
  s->streams->closing.push_back(s->handle);
  s->kind = StreamKind::kClosing;
  s->fd = -1;
  forgetTls(s);
  s->kept.clear();
  s->held.clear();
  s->unsent.clear();
  outboxDrop(s);
  return fd;
}

/** Tells the backend, and reports a refusal as the next record of the handle. */
static void receiveOrFail(Stream *s, bool on) {
  Loop *loop = s->streams->loop;
  const int err = loop->ops->receive(loop, s, on);
  if (err < 0) streamFailed(s, err);
}

int streamSendRecord(void *context, const uint8_t *bytes, size_t length) {
  Stream *s = static_cast<Stream *>(context);
  if (s->unsent.empty()) s->answered = 0;
  if (!s->encrypting) s->answered += length;
  return outboxPutRecords(s, bytes, length, Origin::kCaller);
}

/** The connections whose steps are done belong to their lanes again. */
static void takeHandshakes(Streams *streams) {
  for (Handshake *step : streams->handshakes->take()) {
    Stream *s = step->stream;
    step->done = true;
    tlsConnAttach(s->tls, {streamSendRecord, s}, &s->lane->tlsPool);
    streamQueueReceive(s);
    receiveOrFail(s, true);
  }
}

void turnBegin(Loop *loop) {
  Streams *streams = loop->streams;
  loop->turn->begin();
  for (const int handle : streams->closing) {
    streams->all[static_cast<size_t>(handle)]->kind = StreamKind::kFree;
    streams->freeHandles.push_back(handle);
  }
  streams->closing.clear();
  if (streams->handshakes) takeHandshakes(streams);
}

int watchOwn(Streams *streams, Stream *s, int fd, void (*onReadable)(void *context), void *context) {
  streamReset(s, streams, fd, StreamKind::kWatch);
  s->onReadable = onReadable;
  s->context = context;
  s->reading = true;
  const int err = streams->loop->ops->attach(streams->loop, s);
  return err < 0 ? err : streams->loop->ops->receive(streams->loop, s, true);
}

void unwatchOwn(Stream *s) {
  if (!streamLive(s)) return;
  s->streams->loop->ops->detach(s->streams->loop, s, true);
  s->kind = StreamKind::kFree;
}

static void onWake(void *context) {
  const Loop *loop = static_cast<Loop *>(context);
  uint64_t count;
  // one read empties an eventfd, and only this thread reads it
  if (read(loop->wakeFd, &count, sizeof(count)) == static_cast<ssize_t>(sizeof(count)))
    loop->turn->add(kWake, 0, 0, 0);
}

/** Makes an eventfd and watches it. Returns 0 or -errno. */
static int watchEvents(Streams *streams, Stream *watch, int *fd, void (*onReadable)(void *context), void *context) {
  *fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  return *fd < 0 ? -errno : watchOwn(streams, watch, *fd, onReadable, context);
}

static void onHandshakes(void *context) {
  uint64_t count;
  // it ends the wait; the next turn begins with taking the results
  if (read(static_cast<Streams *>(context)->handshakesFd, &count, sizeof(count)) < 0) return;
}

static int startHandshakes(Streams *streams, int threads) {
  const int err = watchEvents(streams, &streams->handshakesDone, &streams->handshakesFd, onHandshakes, streams);
  if (err < 0) return err;
  streams->handshakes = new (std::nothrow) Handshakes(threads, streams->handshakesFd);
  return streams->handshakes ? 0 : -ENOMEM;
}

Streams *streamsNew(const LoopOps *ops, Turn *turn, const LoopOptions &options, int *err) {
  *err = -ENOMEM;
  Streams *streams = new (std::nothrow) Streams();
  if (!streams) return nullptr;
  Loop *loop = turn->divide(options.hands) ? ops->create(turn, options, err) : nullptr;
  if (!loop) {
    delete streams;
    return nullptr;
  }
  loop->streams = streams;
  loop->duty.on = options.hands > 0 && options.handsLoad == 0;
  streams->loop = loop;
  streams->turn = turn;
  streams->all.push_back(nullptr);
  *err = watchEvents(streams, &streams->wake, &loop->wakeFd, onWake, loop);
  if (*err == 0 && options.handshakeThreads > 0) *err = startHandshakes(streams, options.handshakeThreads);
  if (*err == 0) return streams;
  streamsEnd(streams);
  return nullptr;
}

/* Also runs when a worker's environment goes away, so everything must really be released. */
void streamsEnd(Streams *streams) {
  Loop *loop = streams->loop;
  for (Stream *s : streams->all) {
    if (!s || !streamLive(s)) continue;
    if (s->kind == StreamKind::kWatch)
      forget(s, true);
    else
      streamClose(streams, s->handle);
  }
  unwatchOwn(&streams->wake);
  unwatchOwn(&streams->handshakesDone);
  delete streams->handshakes;
  for (const int fd : {loop->wakeFd, streams->handshakesFd})
    if (fd >= 0) close(fd);
  loop->ops->destroy(loop);
  for (Stream *s : streams->all) delete s;
  delete streams;
}

/* ---- making and ending handles ---- */

int streamOpen(Streams *streams, int fd) {
  int err;
  const Stream *s = streamNew(streams, fd, StreamKind::kConnection, &err);
  return s ? s->handle : err;
}

/** The host and the port of a socket over IPv4. Returns false for any other socket. */
static bool inet4Name(int (*getName)(int, sockaddr *, socklen_t *), int fd, uint32_t *host, uint32_t *port) {
  sockaddr_storage addr;
  socklen_t length = sizeof(addr);
  if (getName(fd, reinterpret_cast<sockaddr *>(&addr), &length) < 0 || addr.ss_family != AF_INET) return false;
  const sockaddr_in *in = reinterpret_cast<const sockaddr_in *>(&addr);
  *host = ntohl(in->sin_addr.s_addr);
  *port = ntohs(in->sin_port);
  return true;
}

int streamAccept(Streams *streams, int fd) {
  Inet4Names names = {};
  if (!inet4Name(getpeername, fd, &names.peerHost, &names.peerPort) ||
      !inet4Name(getsockname, fd, &names.localHost, &names.localPort))
    names.peerPort = 0;
  streams->turn->tellNames(names);
  int err = -EBADF;
  const Stream *s = fd < 0 ? nullptr : streamOfReady(streams, fd, StreamKind::kConnection, &err);
  return s ? s->handle : err;
}

int streamConnect(Streams *streams, int fd, const sockaddr *addr, socklen_t length) {
  if (fd < 0) fd = socket(addr->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  int err;
  Stream *s = streamNew(streams, fd, StreamKind::kConnection, &err);
  if (!s) {
    close(fd);
    return err;
  }
  s->connecting = true;
  streams->loop->ops->connect(streams->loop, s, addr, length);
  return s->handle;
}

int streamListen(Streams *streams, int fd) {
  sockaddr_storage addr;
  socklen_t length = sizeof(addr);
  if (getsockname(fd, reinterpret_cast<sockaddr *>(&addr), &length) < 0) return -errno;
  int err;
  Stream *s = streamNew(streams, fd, StreamKind::kListener, &err);
  if (!s) return err;
  s->unixListener = addr.ss_family == AF_UNIX;
  return s->handle;
}

int streamWatch(Streams *streams, int fd) {
  int err;
  Stream *s = streamNew(streams, fd, StreamKind::kWatch, &err);
  if (!s) return err;
  s->reading = true;
  err = streams->loop->ops->receive(streams->loop, s, true);
  if (err < 0) forget(s, true);
  return err < 0 ? err : s->handle;
}

int streamFd(Streams *streams, int handle) {
  const Stream *s = streamOf(streams, handle);
  return s ? s->fd : -EBADF;
}

/** `hangUp`: ends the connection even if another process has the descriptor too. */
static int closeStream(Streams *streams, int handle, bool hangUp) {
  Stream *s = streamOf(streams, handle);
  if (!s) return -EBADF;
  const bool owned = s->kind != StreamKind::kWatch;
  const int err = outboxSeal(s);
  if (s->tls && !streamAway(s) && err == 0 && s->unsent.empty()) tlsShutdown(s->tls);
  outboxFlush(s);
  const int fd = forget(s, !owned);
  if (owned && hangUp) shutdown(fd, SHUT_RDWR);
  if (owned) close(fd);
  return 0;
}

int streamClose(Streams *streams, int handle) {
  return closeStream(streams, handle, false);
}

int streamHangUp(Streams *streams, int handle) {
  return closeStream(streams, handle, true);
}

int streamDetach(Streams *streams, int handle) {
  Stream *s = streamOf(streams, handle);
  if (!s) return -EBADF;
  outboxFlush(s);
  return forget(s, true);
}

/* ---- what is wanted ---- */

int streamListenStart(Streams *streams, int handle, bool on) {
  Stream *s = streamOf(streams, handle);
  if (!s || s->kind != StreamKind::kListener) return -EBADF;
  s->reading = on;
  receiveOrFail(s, on);
  return 0;
}

int streamRecvStart(Streams *streams, int handle) {
  Stream *s = connectionOf(streams, handle);
  if (!s) return -EBADF;
  if (s->reading) return 0;
  s->reading = true;
  if (s->failed != 0) streamQueue(s);
  s->redeliver = !s->kept.empty();
  if (s->redeliver || (streamWants(s) && streamHasInput(s))) streamQueueReceive(s);
  receiveOrFail(s, true);
  return 0;
}

void stopReceiving(Stream *s) {
  s->reading = s->redeliver = false;
  // a TLS handshake goes on
  if (!s->shaking) receiveOrFail(s, false);
}

int streamRecvStop(Streams *streams, int handle) {
  Stream *s = connectionOf(streams, handle);
  if (!s) return -EBADF;
  stopReceiving(s);
  return 0;
}

int streamRecvLimit(Streams *streams, int handle, int most) {
  Stream *s = connectionOf(streams, handle);
  if (!s) return -EBADF;
  s->recvLimit = most > 0 ? static_cast<uint32_t>(most) : 0;
  return 0;
}

/* The socket is asked only when the backend says that it may have ended: most have not. */
int streamEnded(Streams *streams, int handle) {
  const Stream *s = connectionOf(streams, handle);
  if (!s) return -EBADF;
  if (s->endHeld) return 1;
  if (!s->held.empty()) return 0;
  if (!s->ending) return 0;
  uint8_t next;
  ssize_t n;
  do n = recv(s->fd, &next, 1, MSG_PEEK | MSG_DONTWAIT);
  while (n < 0 && errno == EINTR);
  return n == 0 || (n < 0 && !wouldBlock(errno)) ? 1 : 0;
}

/* ---- sending ---- */

int streamSend(Streams *streams, int handle, const uint8_t *bytes, size_t length, Origin origin) {
  Stream *s = connectionOf(streams, handle);
  if (!s) return -EBADF;
  if (length == 0) return static_cast<int>(s->unsent.length());
  if (s->unsent.length() > kUnsentMax || length > kUnsentMax - s->unsent.length()) return -ENOBUFS;
  return outboxPut(s, bytes, length, origin);
}

int streamUnsent(Streams *streams, int handle) {
  Stream *s = streamOf(streams, handle);
  if (!s) return -EBADF;
  outboxFlush(s);
  return static_cast<int>(s->unsent.length());
}

void streamSendQueued(Streams *streams) {
  for (Stream *s : streams->all)
    if (s && s->kind == StreamKind::kConnection) outboxFlush(s);
}

int streamTakeUnsent(Streams *streams, int handle, uint8_t *into) {
  Stream *s = streamOf(streams, handle);
  if (!s) return -EBADF;
  outboxFlush(s);
  const size_t length = s->unsent.length();
  if (length > 0) memcpy(into, s->unsent.first(), length);
  s->unsent.clear();
  return static_cast<int>(length);
}

/* ---- TLS ---- */

int streamTlsStart(Streams *streams, int handle, TlsConn *conn, const uint8_t *bytes, size_t length) {
  Stream *s = connectionOf(streams, handle);
  const bool possible = s && !s->tls && !s->connecting;
  if (possible) tlsConnAttach(conn, {streamSendRecord, s}, &s->lane->tlsPool);
  if (!possible || !tlsConnPrefix(conn, bytes, length)) {
    tlsConnFree(conn);
    return possible ? -EMSGSIZE : -EBADF;
  }
  s->tls = conn;
  s->shaking = true;
  // the next turn takes the first step, so that its result is a record like any other
  streamQueueReceive(s);
  receiveOrFail(s, true);
  return 0;
}

TlsConn *streamTls(Streams *streams, int handle) {
  const Stream *s = streamOf(streams, handle);
  return s && !s->step ? s->tls : nullptr;
}

}  // namespace tsb
