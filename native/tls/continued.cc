/*
 * A connection that another process, or OpenSSL in this one, began, and that the record layer continues. The stream sees no
 * difference: it gives and takes the same bytes.
 */
#include <errno.h>
#include <string.h>

#include <algorithm>

#include "tls/input.h"

namespace tsb {

/* ---- writing ---- */

static void sendAlert(TlsConn *conn, const uint8_t alert[2]) {
  uint8_t out[recordRoom(2)];
  const size_t n = recordSealAlert(conn->records, alert, out);
  if (n > 0) tlsSendRecords(conn, out, n);
}

int continuedWrite(TlsConn *conn, const uint8_t *bytes, size_t length) {
  const size_t agreed = conn->session.fragmentMost;
  const size_t most = conn->session.server ? std::min(agreed, kTlsClientRecordMost) : agreed;
  uint8_t *out = tlsOutBuffer(conn);
  if (!out) return -ENOMEM;
  while (length > 0 && conn->sendErrno == 0) {
    const size_t part = std::min(length, most);
    if (conn->pool->outLength + recordRoom(part) > kTlsOutSize) tlsSendGathered(conn);
    const size_t n = recordSeal(conn->records, bytes, part, out + conn->pool->outLength);
    // the peer would miss a record: nothing may follow
    if (n == 0) conn->sendErrno = EPROTO;
    conn->pool->outLength += n;
    conn->traffic++;
    bytes += part;
    length -= part;
  }
  if (conn->sendErrno != 0) conn->pool->outLength = 0;
  tlsSendGathered(conn);
  return -conn->sendErrno;
}

void continuedShutdown(TlsConn *conn) {
  static const uint8_t alert[] = {SSL3_AL_WARNING, SSL_AD_CLOSE_NOTIFY};
  if (conn->closed) return;
  conn->closed = true;
  sendAlert(conn, alert);
}

/* ---- reading ---- */

static ssize_t failed(TlsConn *conn, size_t got) {
  const TlsRecords *records = conn->records;
  if (records->alert[1] != 0) sendAlert(conn, records->alert);
  // no close_notify follows an alert
  conn->closed = true;
  const bool handshake = conn->session.version < TLS1_3_VERSION && strcmp(records->why, "unexpected handshake") == 0;
  conn->error = handshake ? "unexpected handshake, closing connection" : std::string("read failed: ") + records->why;
  return tlsEnding(conn, handshake ? 0 : got, -EPROTO);
}

/** The socket has ended or broken, with no whole record before that. Many clients just close. */
static ssize_t socketEnd(TlsConn *conn, size_t got) {
  if (!conn->recvErrno) return tlsEnding(conn, got, 0);
  conn->error = std::string("read failed: ") + strerror(conn->recvErrno);
  return tlsEnding(conn, got, -conn->recvErrno);
}

static size_t takeRest(TlsConn *conn, uint8_t *place, size_t most) {
  const size_t n = std::min(conn->rest.length(), most);
  if (n > 0) memcpy(place, conn->rest.first(), n);
  conn->rest.drop(n);
  return n;
}

/** Decrypts the first record into `into`, which has room for all that follows a header. */
static Opened openFirst(TlsConn *conn, uint8_t *into, size_t *got) {
  uint8_t scratch[kRecordMost];
  const size_t length = firstRecord(conn);
  const size_t have = length > kRecordMost ? kRecordHeader : length;
  const Opened opened = recordOpen(conn->records, inputFirst(conn, have, scratch), have, into, got);
  inputSkip(conn, have);
  conn->traffic++;
  return opened;
}

/** Likewise, when the place is too small: what does not fit comes with the next call. */
static Opened openApart(TlsConn *conn, uint8_t *place, size_t most, size_t *got) {
  uint8_t plain[kRecordMost];
  size_t n;
  const Opened opened = openFirst(conn, plain, &n);
  *got = std::min(n, most);
  memcpy(place, plain, *got);
  if (conn->rest.append(plain + *got, n - *got)) return opened;
  return recordFail(conn->records, SSL_AD_INTERNAL_ERROR, "out of memory");
}

ssize_t continuedRead(TlsConn *conn, uint8_t *place, size_t most) {
  size_t got = takeRest(conn, place, most);
  while (got < most) {
    if (!recordReady(conn)) {
      if (conn->socketEnded || conn->recvErrno) return socketEnd(conn, got);
      break;
    }
    const bool fits = firstRecord(conn) - kRecordHeader <= most - got;
    // a record in parts costs a copy
    if (!fits && got > 0) break;
    size_t n = 0;
    const Opened opened = fits ? openFirst(conn, place + got, &n) : openApart(conn, place + got, most - got, &n);
    if (opened == Opened::kFailed) return failed(conn, got);
    if (opened == Opened::kClosed) return tlsEnding(conn, got, 0);
    got += n;
  }
  return got > 0 ? static_cast<ssize_t>(got) : kTlsNothing;
}

}  // namespace tsb
