/*
 * One TLS connection: the handshake, decrypting what arrives, encrypting what goes out, and the BIO between OpenSSL and
 * the stream. tls.h says where bytes are held.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <string.h>

#include <new>

#include "tls/input.h"
#include "tls/tls.h"

namespace tsb {

/* ---- the BIO ---- */

static int bioRead(BIO *bio, char *into, int most) {
  TlsConn *conn = static_cast<TlsConn *>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  if (conn->flooded) {
    BIO_set_retry_read(bio);
    return -1;
  }
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

/* Takes everything or fails for good, so that no write has to be repeated. */
static int bioWrite(BIO *bio, const char *bytes, int length) {
  TlsConn *conn = static_cast<TlsConn *>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  const size_t size = static_cast<size_t>(length);
  tlsFollowWritten(conn, reinterpret_cast<const uint8_t *>(bytes), size);
  if (conn->gathering && size <= kTlsOutSize) {
    if (conn->pool->outLength + size > kTlsOutSize) tlsSendGathered(conn);
    memcpy(conn->pool->out + conn->pool->outLength, bytes, size);
    conn->pool->outLength += size;
  } else {
    tlsSendRecords(conn, reinterpret_cast<const uint8_t *>(bytes), size);
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

/* OpenSSL frees an SSL without wiping the secrets of TLS 1.3 in it. Its layout is private, so they are found by their values. */
static void wipeCopies(const TlsConn *conn) {
#ifdef __GLIBC__
  const TlsSession &session = conn->session;
  if (!conn->ssl || session.secretLength == 0) return;
  uint8_t *const begin = reinterpret_cast<uint8_t *>(conn->ssl);
  uint8_t *const end = begin + malloc_usable_size(conn->ssl);
  for (const uint8_t *secret : {session.clientSecret, session.serverSecret}) {
    for (uint8_t *at = begin; at < end; at += session.secretLength) {
      at = static_cast<uint8_t *>(memmem(at, static_cast<size_t>(end - at), secret, session.secretLength));
      if (!at) break;
      OPENSSL_cleanse(at, session.secretLength);
    }
  }
#else
  static_cast<void>(conn);
#endif
}

void tlsConnFree(TlsConn *conn) {
  if (!conn) return;
  wipeCopies(conn);
  SSL_free(conn->ssl);
  recordsFree(conn->records);
  inputDrop(conn);
  conn->rest.clear();
  OPENSSL_cleanse(&conn->session, sizeof(conn->session));
  delete conn;
}

void tlsConnAttach(TlsConn *conn, const TlsOutlet &outlet, TlsPool *pool) {
  conn->outlet = outlet;
  conn->pool = pool;
}

/* ---- what OpenSSL says ---- */

/** Before a call whose failure is looked up. Clearing an empty queue takes as long as a part of the cipher. */
static void forgetErrors() {
  if (ERR_peek_error() != 0) ERR_clear_error();
}

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

/** Bytes that are decrypted and were not taken yet. */
static size_t tlsPending(const TlsConn *conn) {
  return conn->records ? conn->rest.length() : static_cast<size_t>(SSL_pending(conn->ssl));
}

size_t tlsBuffered(const TlsConn *conn) { return inputLength(conn) + (conn->established ? tlsPending(conn) : 0); }

bool tlsHasInput(const TlsConn *conn) {
  if (!conn->established) return inputLength(conn) > 0;
  if (conn->ended) return conn->endDue;
  // OpenSSL is asked once more at the end, because only it can tell what kind of end it is
  if (conn->socketEnded || conn->recvErrno) return true;
  return tlsPending(conn) > 0 || (inputLength(conn) > 0 && recordReady(conn));
}

ssize_t tlsRead(TlsConn *conn, uint8_t *place, size_t most) {
  if (conn->ended) {
    conn->endDue = false;
    return conn->endResult;
  }
  if (conn->records) return continuedRead(conn, place, most);
  forgetErrors();
  size_t got = 0;
  while (got < most && tlsHasInput(conn)) {
    const int room = most - got < INT_MAX ? static_cast<int>(most - got) : INT_MAX;
    const int res = SSL_read(conn->ssl, place + got, room);
    if (conn->renegotiation) {
      conn->error = "unexpected handshake, closing connection";
      ERR_clear_error();
      return tlsEnding(conn, 0, -EPROTO);
    }
    if (conn->flooded) {
      conn->error = "read failed: too many records without data";
      ERR_clear_error();
      return tlsEnding(conn, got, -EPROTO);
    }
    if (res > 0) {
      conn->session.idleRecords = 0;
      got += static_cast<size_t>(res);
      continue;
    }
    const ssize_t why = failure(conn, res, "read");
    if (why != kTlsNothing) return tlsEnding(conn, got, static_cast<int>(why));
    break;
  }
  return got > 0 ? static_cast<ssize_t>(got) : kTlsNothing;
}

/** True when a write of that length makes several records, which are collected and sent together. */
static bool gatherable(TlsConn *conn, size_t length) { return length > kTlsClientRecordMost && tlsOutBuffer(conn); }

int tlsWrite(TlsConn *conn, const uint8_t *bytes, size_t length) {
  if (!conn->established || conn->frozen) return -EIO;
  if (conn->sendErrno) return -conn->sendErrno;
  if (length > INT_MAX) return -EMSGSIZE;
  if (conn->records) return continuedWrite(conn, bytes, length);
  forgetErrors();
  conn->gathering = gatherable(conn, length);
  const int res = SSL_write(conn->ssl, bytes, static_cast<int>(length));
  if (conn->gathering) tlsSendGathered(conn);
  conn->gathering = false;
  if (res == static_cast<int>(length)) return -conn->sendErrno;
  const ssize_t why = failure(conn, res, "write");
  return why == 0 || why == kTlsNothing ? -EPROTO : static_cast<int>(why);
}

void tlsShutdown(TlsConn *conn) {
  // an unfinished handshake has no close_notify
  if (!conn->established || conn->frozen || conn->sendErrno) return;
  if (conn->records) {
    continuedShutdown(conn);
    return;
  }
  ERR_clear_error();
  SSL_shutdown(conn->ssl);
  ERR_clear_error();
}

}  // namespace tsb
