/*
 * TLS over one stream, through the OpenSSL that is built into Node. It depends neither on the loop nor on sockets or JavaScript.
 * A stream owns its TlsConn, gives it the bytes received, and gets records to send; bind/tls.cc makes contexts and connections.
 *
 * Received bytes are given to OpenSSL record by record, so that OpenSSL holds no part of a record between two calls. The
 * state of a live connection is therefore in three places: TlsSession, the pieces that are not decrypted yet, and the stream
 * with its kept (decrypted) and unsent (encrypted) bytes. Bytes to send are encrypted at once and never given to OpenSSL
 * again.
 */
#pragma once

#include <openssl/ssl.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "bytes.h"
#include "tls/session.h"

namespace tsb {

/* ---- contexts: tls/context.cc ---- */

/** Bits of TlsOptions::protocols, as in TlsContextOptions of src/core/base/native.ts. */
enum TlsProtocol : int {
  kTls10 = 1 << 1,
  kTls11 = 1 << 2,
  kTls12 = 1 << 3,
  kTls13 = 1 << 4,
};

/** How the peer's certificate is checked. */
enum class TlsVerify : int {
  kNone = 0,      // not at all
  kOptional = 1,  // a client may have none, but not an invalid one
  kRequired = 2,  // the peer must have a valid one
  kName = 3,      // and the server's must carry the host name
};

/** An empty string means OpenSSL's default. */
struct TlsOptions {
  bool server;
  int protocols;
  TlsVerify verify;
  bool dhAuto;
  std::string ciphers;
  std::string ciphers13;
  std::string curve;
  std::string keyFile;
  std::string certFile;
  std::string caFile;
};

struct TlsContext {
  SSL_CTX *ssl;
  bool server;
  TlsVerify verify;
};

/** Returns null and PgBouncer's text in *error on failure. */
TlsContext *tlsContextNew(const TlsOptions &options, std::string *error);
/** Existing connections keep working. */
void tlsContextFree(TlsContext *context);
/** A cipher list of TLS 1.2 and older that names at least one known suite. */
bool tlsCiphersKnown(const std::string &ciphers);
/** The suites of such a list whose connections no other process can continue. None for OpenSSL's own list. */
std::vector<std::string> tlsSuitesThatStay(const std::string &ciphers);
bool tlsCurveKnown(const std::string &curve);
/** The first queued error of OpenSSL as text, or `otherwise`. */
std::string tlsQueuedError(const char *otherwise);

/* ---- connections: tls/conn.cc ---- */

constexpr size_t kTlsPieceSize = 32 * 1024;
/**
 * Most bytes in one record to a client. If an application waits for libpq's socket itself, libpq makes room for 8192
 * bytes and calls SSL_read once each time the socket is readable. The rest of a larger record would stay inside OpenSSL
 * while the application waits for a silent socket. PostgreSQL's own buffer has this size too. Records of 4096 bytes, as PgBouncer
 * sends them, cost more and help no further client.
 */
constexpr size_t kTlsClientRecordMost = 8192;

/** Buffers that the TLS connections of one lane share. */
struct TlsPool {
  /** Free buffers for bytes that are not decrypted yet. A connection holds a buffer only while it has such bytes. */
  std::vector<uint8_t *> idle;
  /** The records of one tlsWrite, so that one system call sends them; allocated by the first write that needs it. */
  uint8_t *out = nullptr;
  size_t outLength = 0;
  ~TlsPool();
};

struct TlsPiece {
  uint8_t *memory;
  size_t begin;
  size_t end;
  size_t length() const { return end - begin; }
};

/** Where records go: takes all bytes, or returns -errno. */
struct TlsOutlet {
  int (*send)(void *context, const uint8_t *bytes, size_t length);
  void *context;
};

/** As the log and SHOW print them. */
struct TlsInfo {
  std::string version;
  std::string cipher;
  /** '' or 'DH=2048', 'ECDH=X25519' */
  std::string exchange;
};

struct TlsRecords;

struct TlsConn {
  /** null when the record layer of tls/record.h continues the connection */
  SSL *ssl;
  /** null when OpenSSL runs it */
  TlsRecords *records;
  TlsOutlet outlet;
  TlsPool *pool;
  /** the second is used only while the first holds the beginning of a record */
  TlsPiece in[2];
  /** the piece that tlsPlace gave out, until tlsReceived */
  TlsPiece *filling;
  /** bytes of the record in progress that OpenSSL has not read yet */
  size_t recordLeft;
  /** of a continued connection: decrypted bytes for which tlsRead had no room */
  Bytes rest;
  TlsVerify verify;
  bool established;
  /** another process may own it already: nothing is sent */
  bool frozen;
  /** of a continued connection: it has sent its last record */
  bool closed;
  /** the stream has ended at endResult (0, or -errno), which is not reported yet */
  bool endDue;
  bool ended;
  int endResult;
  bool socketEnded;
  int recvErrno;
  int sendErrno;
  /** set during a write of several records, which are collected in the pool's `out` */
  bool gathering;
  /** size of the DH key that this end made, 0 without one */
  int dhBits;
  /** the peer began a second handshake */
  bool renegotiation;
  /** the peer has sent too many messages without data, such as key updates: OpenSSL gets no more input */
  bool flooded;
  /** the end of what was sent last, until the handshake is done */
  uint8_t lastWritten[48];
  std::string host;
  std::string error;
  TlsSession session;
  /** records in either direction, ever, in this process */
  uint64_t traffic;
  /** a handshake message (TLS 1.3) has arrived in part */
  bool messagePartial;
  /** of a continued connection: what OpenSSL knew */
  TlsInfo known;
  /** and the peer's certificate (DER), empty without one; only clients' are kept */
  std::string certificate;
};

/** Makes the BIO method of an environment. BIO_meth_free() frees it, after the last connection. */
BIO_METHOD *tlsBioMethod();
/** `host`: the name to verify and to announce, or empty. Null when memory is exhausted. */
TlsConn *tlsConnNew(const TlsContext *context, BIO_METHOD *method, const std::string &host);
void tlsConnFree(TlsConn *conn);
/** Gives a connection its outlet and the buffers. */
void tlsConnAttach(TlsConn *conn, const TlsOutlet &outlet, TlsPool *pool);
/** Bytes of the stream that were received before (at most kTlsPieceSize). Returns false when memory is exhausted. */
bool tlsConnPrefix(TlsConn *conn, const uint8_t *bytes, size_t length);

/** Where the next bytes of the stream should be received. Returns the room there; 0 = no bytes are wanted, because the stream
 *  has ended or memory is exhausted, which the next tlsRead reports. */
size_t tlsPlace(TlsConn *conn, uint8_t **bytes);
/** n bytes have been received, there or elsewhere; or the stream has ended (0), broken (-errno), or has nothing now
 *  (-EAGAIN). Returns false if earlier bytes have to be decrypted first. */
bool tlsReceived(TlsConn *conn, const uint8_t *bytes, ssize_t n);

/** One step of the handshake, with the bytes received: 1 done, 0 not yet, < 0 = failed (conn->error says why). */
int tlsHandshake(TlsConn *conn);

constexpr ssize_t kTlsNothing = -1000000;
/**
 * Decrypts up to `most` bytes. Returns their number, kTlsNothing when no whole record is there, 0 when the stream has
 * ended (with close_notify or without), or -errno (conn->error says why when TLS failed).
 */
ssize_t tlsRead(TlsConn *conn, uint8_t *place, size_t most);
/** True when tlsRead or tlsHandshake has something to do although the socket has nothing to receive. */
bool tlsHasInput(const TlsConn *conn);
/** False before the handshake is done, and after sending has failed. */
inline bool tlsWritable(const TlsConn *conn) { return conn->established && conn->sendErrno == 0; }
/** Bytes that were received and not taken yet, encrypted and decrypted ones. */
size_t tlsBuffered(const TlsConn *conn);
/** Encrypts everything. Returns 0 or -errno. */
int tlsWrite(TlsConn *conn, const uint8_t *bytes, size_t length);
/** Sends close_notify, once and without waiting for an answer. Behind unsent bytes it would be cut off. */
void tlsShutdown(TlsConn *conn);

/* ---- the session of a connection that OpenSSL runs: tls/follow.cc ---- */

/** Bytes that OpenSSL has written. */
void tlsFollowWritten(TlsConn *conn, const uint8_t *bytes, size_t length);
/** For SSL_set_msg_callback(); the argument is the connection. */
void tlsFollowMessage(int written, int version, int contentType, const void *buf, size_t length, SSL *ssl, void *arg);
/** The handshake is done: notes what was agreed on. */
void tlsFollowEstablished(TlsConn *conn);

/* ---- to another process: tls/transfer.cc ---- */

/** Why the connection cannot be continued by another process; null = it can be. What is decrypted must have been taken. */
const char *tlsRefusal(const TlsConn *conn);
/** Likewise, if nothing that is received or sent can change it. */
const char *tlsLastingRefusal(const TlsConn *conn);
/** Everything that another process needs, but the socket: secrets, so the bytes have to be wiped. Empty when it fails. */
std::vector<uint8_t> tlsExport(const TlsConn *conn);
/** The connection of such bytes, frozen; attach it before anything else. Null with -errno in *err when they are not valid. */
TlsConn *tlsImport(const uint8_t *bytes, size_t length, int *err);

/* ---- what is known of the peer: tls/peer.cc ---- */

TlsInfo tlsInfoOf(const TlsConn *conn);
/** During a handshake: size of the temporary DH key of this end, 0 without one. */
int tlsOwnDhBits(SSL *ssl);
bool tlsPeerCertProvided(const TlsConn *conn);
/** Subject in one line, slashes in front of the fields; empty without a certificate. */
std::string tlsPeerCertSubject(const TlsConn *conn);
/** Whether the peer's certificate has the name of this user: the same text, as the common name or a DNS name. */
bool tlsPeerCertContainsName(TlsConn *conn, const std::string &name);
/** Hash of a certificate for tls-server-end-point (RFC 5929); `own`: that of this end. Empty if there is no such hash, and for
 *  the own certificate of a continued connection. */
std::string tlsCertHash(const TlsConn *conn, bool own);
/** As above, with the reason in conn->error for a failed handshake. */
bool tlsPeerCertVerifyHost(TlsConn *conn);

}  // namespace tsb
