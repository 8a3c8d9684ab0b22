/* What only a handover does with the streams: stopping all at once, and taking over what another process has begun. */
#include <errno.h>

#include "loop/stream.h"

namespace tsb {

/* ---- in the old process ---- */

/** Keeps what is decrypted. */
static void keepDecrypted(Stream *s) {
  uint8_t plain[16 * 1024];
  while (!s->tls->ended && tlsHasInput(s->tls)) {
    const ssize_t n = tlsRead(s->tls, plain, sizeof(plain));
    if (n <= 0) break;
    s->lane->received += static_cast<uint64_t>(n);
    if (!s->kept.append(plain, static_cast<size_t>(n))) streamFailed(s, -ENOMEM);
  }
  // the end comes behind the kept bytes
  if (s->tls->ended) s->tls->endDue = true;
}

/* Whole records are decrypted: what is left of a TLS connection is its state between two records, and part of one. */
static void settleTls(Stream *s) {
  if (!s->tls || s->shaking || streamAway(s)) return;
  keepDecrypted(s);
  while (!s->held.empty()) {
    const size_t n = s->held.length() < kTlsPieceSize / 2 ? s->held.length() : kTlsPieceSize / 2;
    if (!tlsReceived(s->tls, s->held.first(), static_cast<ssize_t>(n))) return;
    s->held.drop(n);
    keepDecrypted(s);
  }
}

int streamRest(Streams *streams, int handle) {
  Stream *s = connectionOf(streams, handle);
  if (!s || s->shaking) return -EBADF;
  stopReceiving(s);
  streams->loop->ops->rest(streams->loop, s);
  s->rested = true;
  s->restedTraffic = s->tls ? s->tls->traffic : 0;
  return 0;
}

static bool stirred(const Stream *s) {
  if (!s->kept.empty() || !s->held.empty() || !s->unsent.empty()) return true;
  return s->tls && (s->tls->traffic != s->restedTraffic || tlsBuffered(s->tls) > 0);
}

std::vector<int> streamsStirred(const Streams *streams) {
  std::vector<int> handles;
  for (const Stream *s : streams->all)
    if (s && streamLive(s) && s->rested && stirred(s)) handles.push_back(s->handle);
  return handles;
}

std::vector<int> streamRecvStopAll(Streams *streams, int except) {
  std::vector<int> unsent;
  for (Stream *s : streams->all)
    if (s && s->kind == StreamKind::kConnection && s->handle != except) stopReceiving(s);
  streamSendQueued(streams);
  streams->loop->ops->quiesce(streams->loop);
  for (Stream *s : streams->all)
    if (s && s->kind == StreamKind::kConnection && s->handle != except) settleTls(s);
  streamSendQueued(streams);
  for (const Stream *s : streams->all)
    if (s && s->kind == StreamKind::kConnection && s->handle != except && !s->unsent.empty())
      unsent.push_back(s->handle);
  return unsent;
}

std::vector<int> streamsTlsFreeze(Streams *streams, int except) {
  std::vector<int> refused;
  for (Stream *s : streams->all) {
    if (!s || !streamLive(s) || !s->tls || s->handle == except) continue;
    if (s->step || tlsRefusal(s->tls))
      refused.push_back(s->handle);
    else
      s->tls->frozen = true;
  }
  return refused;
}

void streamsTlsThaw(Streams *streams) {
  for (Stream *s : streams->all)
    if (s && s->tls && !s->step) s->tls->frozen = false;
}

/* ---- in the new process ---- */

int streamSendRecords(Streams *streams, int handle, const uint8_t *bytes, size_t length) {
  Stream *s = connectionOf(streams, handle);
  if (!s) return -EBADF;
  if (length == 0) return static_cast<int>(s->unsent.length());
  return outboxPutRecords(s, bytes, length, Origin::kCaller);
}

int streamTlsContinue(Streams *streams, int handle, TlsConn *conn) {
  Stream *s = connectionOf(streams, handle);
  // a connection that was described ahead may be described again
  if (!s || s->connecting || (s->tls && !s->tls->records)) {
    tlsConnFree(conn);
    return -EBADF;
  }
  tlsConnFree(s->tls);
  s->tls = conn;
  tlsConnAttach(conn, {streamSendRecord, s}, &s->lane->tlsPool);
  return 0;
}

}  // namespace tsb
