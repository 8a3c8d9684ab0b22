/*
 * TLS without OpenSSL, so that the program needs no library. A record is its length in two bytes and the bytes, each with some
 * bits inverted. A record with the first bit set is sent back instead. The handshake is one byte each way. test/native/tls-native.test.ts tests the real TLS.
 */
#include "fake_tls.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

namespace tsb {

constexpr size_t kHeader = 2;
constexpr uint8_t kQuestion = 0x80;

TlsPool::~TlsPool() {}

static TlsPiece *piece(const TlsConn *conn) { return const_cast<TlsPiece *>(&conn->in[0]); }

static size_t recordSize(const TlsConn *conn) {
  const TlsPiece *in = piece(conn);
  if (in->length() < kHeader) return 0;
  const size_t high = in->memory[in->begin] & ~kQuestion;
  const size_t size = kHeader + (high << 8) + in->memory[in->begin + 1];
  return size <= in->length() ? size : 0;
}

TlsConn *fakeTlsNew() {
  TlsConn *conn = new TlsConn();
  conn->in[0].memory = static_cast<uint8_t *>(malloc(kTlsPieceSize));
  return conn;
}

std::string fakeTlsRecord(const std::string &bytes) {
  std::string record = {static_cast<char>(bytes.size() >> 8), static_cast<char>(bytes.size())};
  for (const char byte : bytes) record += static_cast<char>(byte ^ 0x5a);
  return record;
}

std::string fakeTlsQuestion(size_t length) {
  std::string record = fakeTlsRecord(std::string(length, '?'));
  record[0] = static_cast<char>(record[0] | kQuestion);
  return record;
}

void tlsConnFree(TlsConn *conn) {
  if (conn) free(conn->in[0].memory);
  delete conn;
}

void tlsConnAttach(TlsConn *conn, const TlsOutlet &outlet, TlsPool *pool) {
  conn->outlet = outlet;
  conn->pool = pool;
}

size_t tlsPlace(TlsConn *conn, uint8_t **bytes) {
  TlsPiece *in = piece(conn);
  if (conn->socketEnded || conn->recvErrno) return 0;
  memmove(in->memory, in->memory + in->begin, in->length());
  in->end = in->length();
  in->begin = 0;
  conn->filling = in;
  *bytes = in->memory + in->end;
  return kTlsPieceSize - in->end;
}

bool tlsReceived(TlsConn *conn, const uint8_t *bytes, ssize_t n) {
  uint8_t *place = conn->filling ? conn->filling->memory + conn->filling->end : nullptr;
  if (n > 0 && bytes != place) {
    if (tlsHasInput(conn) || tlsPlace(conn, &place) < static_cast<size_t>(n)) return false;
    memcpy(place, bytes, static_cast<size_t>(n));
  }
  if (n > 0)
    conn->in[0].end += static_cast<size_t>(n);
  else if (n == 0)
    conn->socketEnded = true;
  else if (n != -EAGAIN)
    conn->recvErrno = static_cast<int>(-n);
  conn->filling = nullptr;
  return true;
}

bool tlsConnPrefix(TlsConn *conn, const uint8_t *bytes, size_t length) { return length == 0 || tlsReceived(conn, bytes, static_cast<ssize_t>(length)); }

int tlsHandshake(TlsConn *conn) {
  static const uint8_t hello = 'H';
  if (!conn->gathering) conn->outlet.send(conn->outlet.context, &hello, 1);
  // said already
  conn->gathering = true;
  TlsPiece *in = piece(conn);
  if (in->length() == 0) return conn->socketEnded || conn->recvErrno ? -EPROTO : 0;
  if (in->memory[in->begin++] != hello) return -EPROTO;
  conn->established = true;
  return 1;
}

bool tlsHasInput(const TlsConn *conn) {
  if (!conn->established) return piece(conn)->length() > 0;
  if (conn->ended) return conn->endDue;
  return conn->socketEnded || conn->recvErrno || recordSize(conn) > 0;
}

size_t tlsBuffered(const TlsConn *conn) { return piece(conn)->length(); }

ssize_t tlsRead(TlsConn *conn, uint8_t *place, size_t most) {
  if (conn->ended) {
    conn->endDue = false;
    return conn->endResult;
  }
  size_t got = 0;
  for (size_t size = recordSize(conn); size > 0 && got + size - kHeader <= most; size = recordSize(conn)) {
    TlsPiece *in = piece(conn);
    const uint8_t *record = in->memory + in->begin;
    if (*record & kQuestion)
      conn->outlet.send(conn->outlet.context, record, size);
    else
      for (size_t i = kHeader; i < size; i++) place[got++] = record[i] ^ 0x5a;
    in->begin += size;
  }
  if (recordSize(conn) > 0 || (!conn->socketEnded && !conn->recvErrno)) return got > 0 ? static_cast<ssize_t>(got) : kTlsNothing;
  conn->ended = true;
  conn->endResult = -conn->recvErrno;
  conn->endDue = got > 0;
  return got > 0 ? static_cast<ssize_t>(got) : conn->endResult;
}

int tlsWrite(TlsConn *conn, const uint8_t *bytes, size_t length) {
  if (!conn->established) return -EIO;
  while (length > 0) {
    const size_t part = length < 4096 ? length : 4096;
    const std::string record = fakeTlsRecord(std::string(reinterpret_cast<const char *>(bytes), part));
    const int res = conn->outlet.send(conn->outlet.context, reinterpret_cast<const uint8_t *>(record.data()), record.size());
    if (res < 0) return res;
    bytes += part;
    length -= part;
  }
  return 0;
}

void tlsShutdown(TlsConn *) {}

const char *tlsRefusal(const TlsConn *conn) { return conn->established ? nullptr : "handshake under way"; }

}  // namespace tsb
