/* See input.h, and tls.h for who calls tlsPlace() and tlsReceived(). */
#include "tls/input.h"

#include <errno.h>
#include <string.h>

#include <algorithm>

namespace tsb {

/** Free buffers that are kept for the next connection. */
constexpr size_t kPoolMost = 8;
/** A piece with less room than this behind its bytes gets no more bytes. */
constexpr size_t kPieceRoomLeast = kTlsPieceSize / 2;

/* ---- received ---- */

TlsPool::~TlsPool() {
  for (uint8_t *memory : idle) free(memory);
  free(out);
}

static bool pieceTake(TlsPool *pool, TlsPiece *piece) {
  if (pool && !pool->idle.empty()) {
    piece->memory = pool->idle.back();
    pool->idle.pop_back();
  } else {
    piece->memory = static_cast<uint8_t *>(malloc(kTlsPieceSize));
  }
  piece->begin = piece->end = 0;
  return piece->memory != nullptr;
}

static void pieceDrop(TlsPool *pool, TlsPiece *piece) {
  if (!piece->memory) return;
  if (pool && pool->idle.size() < kPoolMost)
    pool->idle.push_back(piece->memory);
  else
    free(piece->memory);
  *piece = TlsPiece();
}

size_t inputLength(const TlsConn *conn) { return conn->in[0].length() + conn->in[1].length(); }

static uint8_t inputByte(const TlsConn *conn, size_t at) {
  const size_t first = conn->in[0].length();
  return at < first ? conn->in[0].memory[conn->in[0].begin + at] : conn->in[1].memory[conn->in[1].begin + at - first];
}

size_t firstRecord(const TlsConn *conn) {
  if (inputLength(conn) < kRecordHeader) return 0;
  return kRecordHeader + (static_cast<size_t>(inputByte(conn, 3)) << 8 | inputByte(conn, 4));
}

bool recordReady(const TlsConn *conn) {
  if (conn->recordLeft > 0) return true;
  const size_t length = firstRecord(conn);
  return length > 0 && (length > kRecordMost || length <= inputLength(conn));
}

void inputSkip(TlsConn *conn, size_t n) {
  while (n > 0) {
    TlsPiece *piece = &conn->in[0];
    const size_t part = std::min(n, piece->length());
    piece->begin += part;
    n -= part;
    if (piece->length() > 0) continue;
    pieceDrop(conn->pool, piece);
    conn->in[0] = conn->in[1];
    conn->in[1] = TlsPiece();
  }
}

static void inputRead(const TlsConn *conn, uint8_t *into, size_t n) {
  const TlsPiece *piece = &conn->in[0];
  const size_t part = std::min(n, piece->length());
  memcpy(into, piece->memory + piece->begin, part);
  if (n > part) memcpy(into + part, conn->in[1].memory + conn->in[1].begin, n - part);
}

void inputCopy(TlsConn *conn, uint8_t *into, size_t n) {
  if (n > 0) inputRead(conn, into, n);
  inputSkip(conn, n);
}

const uint8_t *inputFirst(const TlsConn *conn, size_t n, uint8_t *scratch) {
  if (n <= conn->in[0].length()) return conn->in[0].memory + conn->in[0].begin;
  inputRead(conn, scratch, n);
  return scratch;
}

void inputDrop(TlsConn *conn) {
  pieceDrop(conn->pool, &conn->in[0]);
  pieceDrop(conn->pool, &conn->in[1]);
}

size_t tlsPlace(TlsConn *conn, uint8_t **bytes) {
  if (conn->socketEnded || conn->recvErrno) return 0;
  TlsPiece *piece = &conn->in[0];
  // the beginning of a record stays where it is, so that no byte is moved
  if (piece->memory && kTlsPieceSize - piece->end < kPieceRoomLeast) piece = &conn->in[1];
  if (!piece->memory && !pieceTake(conn->pool, piece)) {
    conn->recvErrno = ENOMEM;
    return 0;
  }
  conn->filling = piece;
  *bytes = piece->memory + piece->end;
  return kTlsPieceSize - piece->end;
}

bool tlsReceived(TlsConn *conn, const uint8_t *bytes, ssize_t n) {
  uint8_t *place = conn->filling ? conn->filling->memory + conn->filling->end : nullptr;
  if (n > 0) {
    if (bytes != place) {
      if (tlsHasInput(conn) || tlsPlace(conn, &place) < static_cast<size_t>(n)) return false;
      memcpy(place, bytes, static_cast<size_t>(n));
    }
    conn->filling->end += static_cast<size_t>(n);
  } else if (n == 0) {
    conn->socketEnded = true;
  } else if (n != -EAGAIN) {
    conn->recvErrno = static_cast<int>(-n);
  }
  // an empty buffer serves other connections
  if (conn->filling && conn->filling->length() == 0) pieceDrop(conn->pool, conn->filling);
  conn->filling = nullptr;
  return true;
}

bool tlsConnPrefix(TlsConn *conn, const uint8_t *bytes, size_t length) {
  if (length == 0) return true;
  if (length > kTlsPieceSize || !pieceTake(conn->pool, &conn->in[0])) return false;
  memcpy(conn->in[0].memory, bytes, length);
  conn->in[0].end = length;
  return true;
}

/* ---- encrypted ---- */

void tlsSendRecords(TlsConn *conn, const uint8_t *bytes, size_t length) {
  if (conn->sendErrno != 0) return;
  const int res = conn->outlet.send(conn->outlet.context, bytes, length);
  if (res < 0) conn->sendErrno = -res;
}

uint8_t *tlsOutBuffer(TlsConn *conn) {
  if (!conn->pool->out) conn->pool->out = static_cast<uint8_t *>(malloc(kTlsOutSize));
  return conn->pool->out;
}

void tlsSendGathered(TlsConn *conn) {
  const size_t length = conn->pool->outLength;
  conn->pool->outLength = 0;
  if (length > 0) tlsSendRecords(conn, conn->pool->out, length);
}

/* ---- the end ---- */

ssize_t tlsEnding(TlsConn *conn, size_t got, int result) {
  conn->ended = true;
  conn->endResult = result;
  conn->endDue = got > 0;
  return got > 0 ? static_cast<ssize_t>(got) : result;
}

}  // namespace tsb
