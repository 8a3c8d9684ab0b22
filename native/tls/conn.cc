/*
 * One TLS connection: the handshake, decrypting what arrives, encrypting what goes out, and the BIO between OpenSSL and
 * the stream. tls.h says where bytes are held.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <string.h>

#include <new>

#include "tls/record.h"
#include "tls/tls.h"

namespace tsb {

/** Free buffers that are kept for the next connection. */
constexpr size_t kPoolMost = 8;
/** A piece with less room than this behind its bytes gets no more bytes. */
constexpr size_t kPieceRoomLeast = kTlsPieceSize / 2;
/** Room for the records of one full delivery, so that forwarding it costs one system call. */
constexpr size_t kOutSize = 72 * 1024;

/* ---- received bytes ---- */

TlsPool::~TlsPool() {
  for (uint8_t *memory : idle) free(memory);
  free(out);
}

static bool pieceTake(TlsPool *pool, TlsPiece *piece) {
  if (!pool->idle.empty()) {
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

static size_t inputLength(const TlsConn *conn) { return conn->in[0].length() + conn->in[1].length(); }

static uint8_t inputByte(const TlsConn *conn, size_t at) {
  const size_t first = conn->in[0].length();
  return at < first ? conn->in[0].memory[conn->in[0].begin + at] : conn->in[1].memory[conn->in[1].begin + at - first];
}

/** Length of the record that the input begins with, 0 while its header is not complete. */
static size_t firstRecord(const TlsConn *conn) {
  if (inputLength(conn) < kRecordHeader) return 0;
  return kRecordHeader + (static_cast<size_t>(inputByte(conn, 3)) << 8 | inputByte(conn, 4));
}

/** True when OpenSSL can be given a whole record, or one so long that it will refuse it. */
static bool recordReady(const TlsConn *conn) {
  if (conn->recordLeft > 0) return true;
  const size_t length = firstRecord(conn);
  return length > 0 && (length > kRecordMost || length <= inputLength(conn));
}

static void inputCopy(TlsConn *conn, uint8_t *into, size_t n) {
  while (n > 0) {
    TlsPiece *piece = &conn->in[0];
    const size_t part = n < piece->length() ? n : piece->length();
    memcpy(into, piece->memory + piece->begin, part);
    piece->begin += part;
    into += part;
    n -= part;
    if (piece->length() > 0) continue;
    pieceDrop(conn->pool, piece);
    conn->in[0] = conn->in[1];
    conn->in[1] = TlsPiece();
  }
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

/* ---- the BIO ---- */

static int bioRead(BIO *bio, char *into, int most) {
  TlsConn *conn = static_cast<TlsConn *>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  const size_t have = inputLength(conn);
  if (have == 0) {
    if (conn->socketEnded) return 0;
    if (!conn->recvErrno) BIO_set_retry_read(bio);
    errno = conn->recvErrno;
    return -1;
  }
  size_t n = static_cast<size_t>(most) < have ? static_cast<size_t>(most) : have;
  if (conn->established && !conn->socketEnded && !conn->recvErrno) {
    if (!recordReady(conn)) {
      BIO_set_retry_read(bio);
      return -1;
    }
    if (conn->recordLeft == 0) {
      const size_t length = firstRecord(conn);
      conn->recordLeft = length > have ? have : length;
    }
    if (n > conn->recordLeft) n = conn->recordLeft;
    conn->recordLeft -= n;
  }
  inputCopy(conn, reinterpret_cast<uint8_t *>(into), n);
  return static_cast<int>(n);
}

/* After a failure nothing more is sent: the peer could not decrypt what comes behind the gap. */
static void sendRecords(TlsConn *conn, const uint8_t *bytes, size_t length) {
  if (conn->sendErrno != 0) return;
  const int res = conn->outlet.send(conn->outlet.context, bytes, length);
  if (res < 0) conn->sendErrno = -res;
}

static void sendGathered(TlsConn *conn) {
  const size_t length = conn->pool->outLength;
  conn->pool->outLength = 0;
  if (length > 0) sendRecords(conn, conn->pool->out, length);
}

/* Takes everything or fails for good, so that no write has to be repeated. */
static int bioWrite(BIO *bio, const char *bytes, int length) {
  TlsConn *conn = static_cast<TlsConn *>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  const size_t size = static_cast<size_t>(length);
  tlsFollowWritten(conn, reinterpret_cast<const uint8_t *>(bytes), size);
  if (conn->gathering && size <= kOutSize) {
    if (conn->pool->outLength + size > kOutSize) sendGathered(conn);
    memcpy(conn->pool->out + conn->pool->outLength, bytes, size);
    conn->pool->outLength += size;
  } else {
    sendRecords(conn, reinterpret_cast<const uint8_t *>(bytes), size);
  }
  if (conn->sendErrno == 0) return length;
  errno = conn->sendErrno;
  return -1;
}

static long bioCtrl(BIO *bio, int command, long, void *) {
  const TlsConn *conn = static_cast<const TlsConn *>(BIO_get_data(bio));
  if (command == BIO_CTRL_FLUSH) return 1;
  if (command == BIO_CTRL_EOF) return conn && conn->socketEnded && inputLength(conn) == 0;
  return 0;
}

BIO_METHOD *tlsBioMethod() {
  BIO_METHOD *method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "tsbouncer");
  if (!method) return nullptr;
  BIO_meth_set_read(method, bioRead);
  BIO_meth_set_write(method, bioWrite);
  BIO_meth_set_ctrl(method, bioCtrl);
  return method;
}

/* ---- life ---- */

TlsConn *tlsConnNew(const TlsContext *context, BIO_METHOD *method, const std::string &host) {
  TlsConn *conn = new (std::nothrow) TlsConn();
  if (!conn) return nullptr;
  conn->ssl = SSL_new(context->ssl);
  BIO *bio = conn->ssl ? BIO_new(method) : nullptr;
  if (!bio) {
    tlsConnFree(conn);
    ERR_clear_error();
    return nullptr;
  }
  BIO_set_data(bio, conn);
  BIO_set_init(bio, 1);
  SSL_set_bio(conn->ssl, bio, bio);
  SSL_set_app_data(conn->ssl, conn);
  SSL_set_msg_callback(conn->ssl, tlsFollowMessage);
  SSL_set_msg_callback_arg(conn->ssl, conn);
  conn->verify = context->verify;
  conn->host = host;
  conn->session.server = context->server;
  if (context->server) {
    SSL_set_accept_state(conn->ssl);
  } else {
    SSL_set_connect_state(conn->ssl);
    // RFC 6066: SNI carries host names, not addresses
    unsigned char address[16];
    const bool numeric =
        inet_pton(AF_INET, host.c_str(), address) == 1 || inet_pton(AF_INET6, host.c_str(), address) == 1;
    if (!host.empty() && !numeric) SSL_set_tlsext_host_name(conn->ssl, host.c_str());
  }
  return conn;
}

void tlsConnFree(TlsConn *conn) {
  if (!conn) return;
  SSL_free(conn->ssl);
  pieceDrop(conn->pool, &conn->in[0]);
  pieceDrop(conn->pool, &conn->in[1]);
  OPENSSL_cleanse(&conn->session, sizeof(conn->session));
  delete conn;
}

void tlsConnAttach(TlsConn *conn, const TlsOutlet &outlet, TlsPool *pool) {
  conn->outlet = outlet;
  conn->pool = pool;
}

bool tlsConnPrefix(TlsConn *conn, const uint8_t *bytes, size_t length) {
  if (length == 0) return true;
  if (length > kTlsPieceSize || !pieceTake(conn->pool, &conn->in[0])) return false;
  memcpy(conn->in[0].memory, bytes, length);
  conn->in[0].end = length;
  return true;
}

/* ---- what OpenSSL says ---- */

static bool isUnexpectedEnd(unsigned long code) {
  return ERR_GET_LIB(code) == ERR_LIB_SSL && ERR_GET_REASON(code) == SSL_R_UNEXPECTED_EOF_WHILE_READING;
}

/** Sets the error text and returns a negative number. */
static int fail(TlsConn *conn, const char *what, const char *why) {
  conn->error = std::string(what) + " failed: " + why;
  ERR_clear_error();
  const int err = conn->recvErrno ? conn->recvErrno : conn->sendErrno;
  return err ? -err : -EPROTO;
}

/**
 * The meaning of a call that did not succeed: kTlsNothing = call again later, 0 = the stream has ended, else -errno. After
 * the handshake, an end without close_notify is a normal end, because most clients just close.
 */
static ssize_t failure(TlsConn *conn, int result, const char *what) {
  const int code = SSL_get_error(conn->ssl, result);
  switch (code) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
      return kTlsNothing;
    case SSL_ERROR_NONE:
    case SSL_ERROR_ZERO_RETURN:
      return 0;
    case SSL_ERROR_SYSCALL:
    case SSL_ERROR_SSL:
      break;
    default:
      return fail(conn, what, ("error " + std::to_string(code)).c_str());
  }
  const unsigned long queued = ERR_peek_error();
  const bool ended = queued != 0 ? isUnexpectedEnd(queued) : code == SSL_ERROR_SYSCALL && conn->socketEnded;
  if (ended && conn->established) {
    ERR_clear_error();
    return 0;
  }
  if (queued != 0) return fail(conn, what, tlsQueuedError("").c_str());
  if (ended) return fail(conn, what, "unexpected EOF");
  const int err = conn->recvErrno ? conn->recvErrno : conn->sendErrno;
  return fail(conn, what, err ? strerror(err) : "unknown error");
}

/* ---- handshake ---- */

int tlsHandshake(TlsConn *conn) {
  ERR_clear_error();
  const int res = SSL_do_handshake(conn->ssl);
  if (res != 1) {
    const ssize_t why = failure(conn, res, "handshake");
    if (why == 0) return fail(conn, "handshake", "unexpected EOF");
    return why == kTlsNothing ? 0 : static_cast<int>(why);
  }
  tlsFollowEstablished(conn);
  if (conn->verify != TlsVerify::kName || tlsPeerCertVerifyHost(conn)) return 1;
  // send no data to a peer with the wrong name
  conn->established = false;
  return -EPROTO;
}

/* ---- data ---- */

bool tlsHasInput(const TlsConn *conn) {
  if (!conn->established) return inputLength(conn) > 0;
  if (conn->ended) return conn->endDue;
  // OpenSSL is asked once more at the end, because only it can tell what kind of end it is
  if (conn->socketEnded || conn->recvErrno) return true;
  return SSL_pending(conn->ssl) > 0 || (inputLength(conn) > 0 && recordReady(conn));
}

/** The stream has ended. Bytes decrypted before are returned first. */
static ssize_t ending(TlsConn *conn, size_t got, int result) {
  conn->ended = true;
  conn->endResult = result;
  conn->endDue = got > 0;
  return got > 0 ? static_cast<ssize_t>(got) : result;
}

ssize_t tlsRead(TlsConn *conn, uint8_t *place, size_t most) {
  if (conn->ended) {
    conn->endDue = false;
    return conn->endResult;
  }
  ERR_clear_error();
  size_t got = 0;
  while (got < most && tlsHasInput(conn)) {
    const int room = most - got < INT_MAX ? static_cast<int>(most - got) : INT_MAX;
    const int res = SSL_read(conn->ssl, place + got, room);
    if (conn->renegotiation) {
      conn->error = "unexpected handshake, closing connection";
      ERR_clear_error();
      return ending(conn, 0, -EPROTO);
    }
    if (res > 0) {
      got += static_cast<size_t>(res);
      continue;
    }
    const ssize_t why = failure(conn, res, "read");
    if (why != kTlsNothing) return ending(conn, got, static_cast<int>(why));
    break;
  }
  return got > 0 ? static_cast<ssize_t>(got) : kTlsNothing;
}

/** True when a write of that length makes several records, which are collected and sent together. */
static bool gatherable(TlsConn *conn, size_t length) {
  if (length <= kTlsClientRecordMost) return false;
  if (!conn->pool->out) conn->pool->out = static_cast<uint8_t *>(malloc(kOutSize));
  return conn->pool->out != nullptr;
}

int tlsWrite(TlsConn *conn, const uint8_t *bytes, size_t length) {
  if (!conn->established) return -EIO;
  if (conn->sendErrno) return -conn->sendErrno;
  if (length > INT_MAX) return -EMSGSIZE;
  ERR_clear_error();
  conn->gathering = gatherable(conn, length);
  const int res = SSL_write(conn->ssl, bytes, static_cast<int>(length));
  if (conn->gathering) sendGathered(conn);
  conn->gathering = false;
  if (res == static_cast<int>(length)) return -conn->sendErrno;
  const ssize_t why = failure(conn, res, "write");
  return why == 0 || why == kTlsNothing ? -EPROTO : static_cast<int>(why);
}

void tlsShutdown(TlsConn *conn) {
  // an unfinished handshake has no close_notify
  if (!conn->established || conn->sendErrno) return;
  ERR_clear_error();
  SSL_shutdown(conn->ssl);
  ERR_clear_error();
}

}  // namespace tsb
