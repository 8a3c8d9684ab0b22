/*
 * The bytes of a TLS connection on their way between the stream and the code that decrypts and encrypts: OpenSSL (conn.cc), or the
 * record layer that continues a session (continued.cc).
 */
#pragma once

#include "tls/record.h"
#include "tls/tls.h"

namespace tsb {

/** Room for the records of one full delivery, so that forwarding it costs one system call. */
constexpr size_t kTlsOutSize = 72 * 1024;

/* ---- received, not decrypted yet ---- */

size_t inputLength(const TlsConn *conn);
/** Length of the record that the input begins with, 0 while its header is not complete. */
size_t firstRecord(const TlsConn *conn);
/** True when the input begins with a whole record, or with one so long that it is refused. */
bool recordReady(const TlsConn *conn);
/** Moves the first n bytes. */
void inputCopy(TlsConn *conn, uint8_t *into, size_t n);
/** The first n bytes where they are, or, when they are in two pieces, in `scratch`. They stay input. */
const uint8_t *inputFirst(const TlsConn *conn, size_t n, uint8_t *scratch);
void inputSkip(TlsConn *conn, size_t n);
void inputDrop(TlsConn *conn);

/* ---- encrypted ---- */

/** After a failure nothing more is sent: the peer could not decrypt what comes behind the gap. */
void tlsSendRecords(TlsConn *conn, const uint8_t *bytes, size_t length);
/** The pool's buffer of kTlsOutSize bytes, or null when memory is exhausted. */
uint8_t *tlsOutBuffer(TlsConn *conn);
/** Sends what has been collected in it. */
void tlsSendGathered(TlsConn *conn);

/* ---- the end ---- */

/** The stream has ended. Bytes decrypted before, in this call, are returned first. */
ssize_t tlsEnding(TlsConn *conn, size_t got, int result);

/* ---- a connection that the record layer continues: continued.cc ---- */

ssize_t continuedRead(TlsConn *conn, uint8_t *place, size_t most);
int continuedWrite(TlsConn *conn, const uint8_t *bytes, size_t length);
void continuedShutdown(TlsConn *conn);

}  // namespace tsb
