/*
 * TLS over one connected socket, through the OpenSSL that the Node binary carries. This part knows no loop and no
 * JavaScript: a loop backend owns a TlsConn per handle and calls it when the socket is readable or bytes are to be sent;
 * bind/tls.cc makes contexts and connections.
 *
 * What arrives is received into buffers of this part and given to OpenSSL record by record, so that between two calls
 * OpenSSL holds no half record: everything a live connection consists of is either here (TlsSession, the pieces not yet
 * decrypted) or in the loop (decrypted bytes kept, encrypted bytes unsent). What goes out is encrypted at once; what
 * the socket does not take waits, encrypted, in the loop's queue. So a write never has to be repeated.
 */
#pragma once

#include <openssl/ssl.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "bytes.h"

namespace tsb {

constexpr size_t kTlsRandomSize = 32;
/** SHA-384 is the longest hash of a TLS 1.3 suite; a TLS 1.2 master secret has 48 bytes too. */
constexpr size_t kTlsSecretMax = 64;

/**
 * All that another process needs, besides the socket and the bytes in between, to go on with this connection: the
 * secrets as the keylog callback gave them, and how many records each side has protected with its present key.
 */
struct TlsSession {
  /** TLS1_2_VERSION and so on; 0 until the handshake is done */
  int version;
  /** the two bytes of the suite, as in the protocol */
  uint16_t cipher;
  bool server;
  /** TLS 1.2 and older: keys follow from these three */
  uint8_t clientRandom[kTlsRandomSize];
  uint8_t serverRandom[kTlsRandomSize];
  uint8_t masterSecret[kTlsSecretMax];
  size_t masterLength;
  /** TLS 1.3: the first application traffic secrets; a key update derives the next from them, n times */
  uint8_t clientSecret[kTlsSecretMax];
  uint8_t serverSecret[kTlsSecretMax];
  size_t secretLength;
  uint32_t keyUpdatesRead;
  uint32_t keyUpdatesWritten;
  /** the sequence number of the next record, each way */
  uint64_t recordsRead;
  uint64_t recordsWritten;
};

/* ---- contexts: tls/context.cc ---- */

/** Bits of TlsOptions::protocols, as in src/core/net/tls.ts. */
enum TlsProtocol : int {
  kTls10 = 1 << 1,
  kTls11 = 1 << 2,
  kTls12 = 1 << 3,
  kTls13 = 1 << 4,
};

/** How the peer's certificate is looked at. */
enum class TlsVerify : int {
  kNone = 0,      // not at all
  kOptional = 1,  // a certificate that is shown must be valid (accepting side)
  kRequired = 2,  // there must be a valid one
  kName = 3,      // and it must carry the host name (connecting side)
};

/** Empty strings: OpenSSL's defaults. */
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

/** Returns null and the original's text in *error. */
TlsContext *tlsContextNew(const TlsOptions &options, std::string *error);
/** Connections made from it live on. */
void tlsContextFree(TlsContext *context);
/** A cipher list of TLS 1.2 and older that names at least one known suite. */
bool tlsCiphersKnown(const std::string &ciphers);
bool tlsCurveKnown(const std::string &curve);
/** The first queued error of OpenSSL as text, or `otherwise`. */
std::string tlsQueuedError(const char *otherwise);

/* ---- connections: tls/conn.cc ---- */

constexpr size_t kTlsPieceSize = 32 * 1024;
/**
 * Most bytes in one record towards a client. libpq, when the application waits for the socket itself, makes room for
 * 8192 bytes and calls SSL_read once for each time the socket is readable: the rest of a larger record stays inside
 * OpenSSL, and the application waits for a socket that stays silent. PostgreSQL's own buffer has this size too. Records
 * of 4096 bytes, as PgBouncer sends them, cost more and help no client that these do not help.
 */
constexpr size_t kTlsClientRecordMost = 8192;

/** What the TLS connections of one loop share. */
struct TlsPool {
  /** Buffers for bytes that were received and not decrypted yet; a connection holds one only while it has such bytes. */
  std::vector<uint8_t *> idle;
  /** The records of one tlsWrite, so that they leave in one system call; allocated by the first write that needs it. */
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

struct TlsConn {
  SSL *ssl;
  TlsOutlet outlet;
  TlsPool *pool;
  /** the second is used only while the first holds the beginning of its first record */
  TlsPiece in[2];
  /** the one that tlsPlace gave out, until tlsReceived */
  TlsPiece *filling;
  /** bytes of the record in progress that OpenSSL has not asked for yet */
  size_t recordLeft;
  TlsVerify verify;
  bool established;
  /** the stream has ended at this result (0, or -errno) and that is not told yet */
  bool endDue;
  bool ended;
  int endResult;
  bool socketEnded;
  int recvErrno;
  int sendErrno;
  /** set during a write of several records: they are collected in the pool's `out` */
  bool gathering;
  /** size of the DH key that this end made, 0 without one */
  int dhBits;
  /** the peer began a second handshake */
  bool renegotiation;
  std::string host;
  std::string error;
  TlsSession session;
};

/** Makes the BIO method of an environment; freed by BIO_meth_free() after the last connection. */
BIO_METHOD *tlsBioMethod();
/** `host`: the name to verify and to announce, or empty. Null when memory is exhausted. */
TlsConn *tlsConnNew(const TlsContext *context, BIO_METHOD *method, const std::string &host);
void tlsConnFree(TlsConn *conn);
/** Lends it the way out and the buffers. */
void tlsConnAttach(TlsConn *conn, const TlsOutlet &outlet, TlsPool *pool);
/** Bytes of the stream that were received before (at most kTlsPieceSize). Returns false when memory is exhausted. */
bool tlsConnPrefix(TlsConn *conn, const uint8_t *bytes, size_t length);

/** Where the next bytes of the stream are to be received. Returns how many there is room for; 0 = none is wanted, because
 *  the stream has ended or memory is exhausted, which the next tlsRead reports. */
size_t tlsPlace(TlsConn *conn, uint8_t **bytes);
/** n bytes have been received, there or elsewhere; or the stream has ended (0), broken (-errno), or has nothing now
 *  (-EAGAIN). Returns false when what was received before has to be decrypted first. */
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
/** Encrypts everything. Returns 0 or -errno. */
int tlsWrite(TlsConn *conn, const uint8_t *bytes, size_t length);
/** Sends close_notify, once and without waiting for an answer. Behind unsent bytes it would be cut off. */
void tlsShutdown(TlsConn *conn);

/* ---- what is known of the peer: tls/peer.cc ---- */

struct TlsInfo {
  std::string version;
  std::string cipher;
  /** '' or 'DH=2048', 'ECDH=X25519' */
  std::string exchange;
};

TlsInfo tlsInfoOf(const TlsConn *conn);
/** While a handshake is under way: size of the temporary DH key of this end, 0 without one. */
int tlsOwnDhBits(SSL *ssl);
bool tlsPeerCertProvided(const TlsConn *conn);
/** Subject in one line, slashes in front of the fields; empty without a certificate. */
std::string tlsPeerCertSubject(const TlsConn *conn);
/** Whether the peer's certificate is for this host name or address. */
bool tlsPeerCertContainsName(TlsConn *conn, const std::string &name);
/** As above, with the reason in conn->error for a failed handshake. */
bool tlsPeerCertVerifyHost(TlsConn *conn);

}  // namespace tsb
