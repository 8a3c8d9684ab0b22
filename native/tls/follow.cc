/*
 * Follows the session of a connection that OpenSSL runs, so that the record layer of tls/record.h could continue it at any time:
 * OpenSSL tells neither the record numbers nor the present secrets.
 */
#include <openssl/err.h>
#include <string.h>

#include <algorithm>

#include "tls/record.h"
#include "tls/tls.h"

namespace tsb {

/** Of TLS 1.2: the message header and verify_data. */
constexpr size_t kFinishedLength = 4 + 12;

/* ---- what OpenSSL writes ---- */

static uint64_t numberOf(const uint8_t *bytes) {
  uint64_t number = 0;
  for (int i = 0; i < 8; i++) number = number << 8 | bytes[i];
  return number;
}

void tlsFollowWritten(TlsConn *conn, const uint8_t *bytes, size_t length) {
  if (!conn->established) {
    // Finished, the last message of a handshake, may be cut in two by the buffer of OpenSSL
    const size_t n = std::min(length, sizeof(conn->lastWritten));
    memmove(conn->lastWritten, conn->lastWritten + n, sizeof(conn->lastWritten) - n);
    memcpy(conn->lastWritten + sizeof(conn->lastWritten) - n, bytes + length - n, n);
    return;
  }
  // The explicit nonces of GCM begin anywhere. After the handshake OpenSSL writes whole records.
  if (conn->session.version != TLS1_2_VERSION) return;
  while (length >= kRecordHeader + 8) {
    conn->session.nextNonce = numberOf(bytes + kRecordHeader) + 1;
    const size_t n = std::min(length, recordLength(bytes));
    bytes += n;
    length -= n;
  }
}

static void nextSecret(TlsSession *session, bool ofServer) {
  const TlsAead *aead = tlsAeadOf(session->version, session->cipher);
  uint8_t *secret = ofServer ? session->serverSecret : session->clientSecret;
  // without it the connection cannot be continued, which recordRefusal() says
  if (!aead || !tlsNextSecret(aead, secret, session->secretLength)) session->secretLength = 0;
}

/* Called for every record and handshake message: counts records, and notes what OpenSSL does not keep. */
void tlsFollowMessage(int written, int, int contentType, const void *buf, size_t length, SSL *ssl, void *arg) {
  TlsConn *conn = static_cast<TlsConn *>(arg);
  if (length == 0) return;
  TlsSession *session = &conn->session;
  const uint8_t first = *static_cast<const uint8_t *>(buf);
  if (!conn->established) {
    if (written && contentType == SSL3_RT_HANDSHAKE && first == SSL3_MT_SERVER_KEY_EXCHANGE) conn->dhBits = tlsOwnDhBits(ssl);
    return;
  }
  if (contentType == SSL3_RT_INNER_CONTENT_TYPE) {
    if (!written) conn->messagePartial = first == SSL3_RT_HANDSHAKE;
    return;
  }
  if (contentType == SSL3_RT_HANDSHAKE && !written) {
    conn->messagePartial = false;
    // it costs far more time than its bytes, and OpenSSL goes on as long as there is input
    conn->flooded = ++session->idleRecords > kIdleRecordsMost;
  }
  if (contentType == SSL3_RT_HEADER) {
    conn->traffic++;
    if (written) {
      session->recordsWritten++;
    } else {
      session->recordsRead++;
      // in TLS 1.3 handshake messages after the handshake are encrypted, and are no renegotiation
      if (first == SSL3_RT_HANDSHAKE && session->version < TLS1_3_VERSION) conn->renegotiation = true;
    }
  } else if (contentType == SSL3_RT_HANDSHAKE && first == SSL3_MT_KEY_UPDATE) {
    nextSecret(session, session->server == (written != 0));
    if (written) {
      session->keyUpdatesWritten++;
      session->recordsWritten = 0;
    } else {
      session->keyUpdatesRead++;
      session->recordsRead = 0;
    }
  }
}

/* ---- the end of the handshake ---- */

void tlsFollowEstablished(TlsConn *conn) {
  TlsSession *session = &conn->session;
  const SSL_CIPHER *cipher = SSL_get_current_cipher(conn->ssl);
  session->version = SSL_version(conn->ssl);
  session->cipher = cipher ? SSL_CIPHER_get_protocol_id(cipher) : 0;
  SSL_get_client_random(conn->ssl, session->clientRandom, kTlsRandomSize);
  SSL_get_server_random(conn->ssl, session->serverRandom, kTlsRandomSize);
  // up to TLS 1.2, the Finished messages were the first records with these keys
  session->recordsRead = session->recordsWritten = session->version < TLS1_3_VERSION ? 1 : 0;
  const SSL_SESSION *agreed = SSL_get0_session(conn->ssl);
  const int code = agreed ? SSL_SESSION_get_max_fragment_length(agreed) : TLSEXT_max_fragment_length_DISABLED;
  session->fragmentMost = code == TLSEXT_max_fragment_length_DISABLED ? kTlsFragmentMost : size_t{256} << code;
  const TlsAead *aead = tlsAeadOf(session->version, session->cipher);
  if (aead && session->version == TLS1_2_VERSION && aead->explicitLength > 0) {
    const size_t fromEnd = aead->explicitLength + kFinishedLength + aead->tagLength;
    session->nextNonce = numberOf(conn->lastWritten + sizeof(conn->lastWritten) - fromEnd) + 1;
  }
  conn->established = true;
}

}  // namespace tsb
