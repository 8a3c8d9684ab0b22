/*
 * What a record says that is not data: alerts, and the handshake messages that may follow a handshake. Of those only a key
 * update changes anything. A message may begin in one record and end in another, so what has arrived of it is part of the
 * session.
 */
#include <string.h>

#include <algorithm>

#include "tls/record.h"

namespace tsb {

constexpr size_t kMessageHeader = 4;

/* ---- alerts ---- */

static Opened takeAlert(TlsRecords *r, const uint8_t *bytes, size_t length) {
  if (length != 2) return recordFail(r, SSL_AD_UNEXPECTED_MESSAGE, "invalid alert");
  const bool tls13 = r->session->version == TLS1_3_VERSION;
  if (bytes[1] == SSL_AD_CLOSE_NOTIFY) return Opened::kClosed;
  // TLS 1.3 has only one harmless alert besides, and the level says nothing
  if (tls13 ? bytes[1] == SSL_AD_USER_CANCELLED : bytes[0] == SSL3_AL_WARNING) return Opened::kNothing;
  if (!tls13 && bytes[0] != SSL3_AL_FATAL) return recordFail(r, SSL_AD_ILLEGAL_PARAMETER, "unknown alert type");
  r->alert[0] = r->alert[1] = 0;
  r->why = SSL_alert_desc_string_long(bytes[1]);
  return Opened::kFailed;
}

/* ---- messages of TLS 1.3 ---- */

/** Whether a message of this type and length may come. Null when it may. */
static const char *checkMessage(const TlsSession &session, uint8_t type, uint32_t length, int *alert) {
  *alert = SSL_AD_DECODE_ERROR;
  if (type == SSL3_MT_KEY_UPDATE) return length == 1 ? nullptr : "bad key update";
  if (type == SSL3_MT_NEWSESSION_TICKET && !session.server) return length <= kTicketMost ? nullptr : "session ticket too long";
  *alert = SSL_AD_UNEXPECTED_MESSAGE;
  // post-handshake authentication is not offered
  return type == SSL3_MT_CERTIFICATE_REQUEST ? "unexpected certificate request" : "unexpected handshake message";
}

static Opened takeKeyUpdate(TlsRecords *r, uint8_t request) {
  TlsSession *session = r->session;
  if (request > SSL_KEY_UPDATE_REQUESTED) return recordFail(r, SSL_AD_ILLEGAL_PARAMETER, "bad key update");
  uint8_t *secret = session->server ? session->clientSecret : session->serverSecret;
  if (!tlsNextSecret(r->aead, secret, session->secretLength) || !recordKey(r, true))
    return recordFail(r, SSL_AD_INTERNAL_ERROR, "no new key");
  session->recordsRead = 0;
  session->keyUpdatesRead++;
  // several requests get one answer, before the next data
  session->updateAsked = session->updateAsked || request == SSL_KEY_UPDATE_REQUESTED;
  return Opened::kNothing;
}

/** Takes bytes of the message in progress; a key update's only byte is the last one of its record. */
static Opened takeBody(TlsRecords *r, const uint8_t **at, const uint8_t *end) {
  TlsPartialMessage *partial = &r->session->partial;
  const size_t n = std::min<size_t>(partial->left, static_cast<size_t>(end - *at));
  const uint8_t *bytes = *at;
  *at += n;
  partial->left -= static_cast<uint32_t>(n);
  if (partial->left > 0) return Opened::kNothing;
  const uint8_t type = partial->header[0];
  *partial = TlsPartialMessage();
  if (type != SSL3_MT_KEY_UPDATE) return Opened::kNothing;
  // what follows would have been protected with the new key
  if (*at != end) return recordFail(r, SSL_AD_UNEXPECTED_MESSAGE, "key update not at the end of a record");
  return takeKeyUpdate(r, *bytes);
}

static Opened takeHandshake(TlsRecords *r, const uint8_t *at, size_t length) {
  TlsPartialMessage *partial = &r->session->partial;
  const uint8_t *end = at + length;
  if (at == end) return recordFail(r, SSL_AD_UNEXPECTED_MESSAGE, "empty handshake record");
  while (at < end) {
    const size_t n = std::min<size_t>(kMessageHeader - partial->have, static_cast<size_t>(end - at));
    memcpy(partial->header + partial->have, at, n);
    at += n;
    partial->have = static_cast<uint8_t>(partial->have + n);
    if (partial->have < kMessageHeader) break;
    if (n > 0) {
      const uint8_t *h = partial->header;
      partial->left = static_cast<uint32_t>(h[1]) << 16 | static_cast<uint32_t>(h[2]) << 8 | h[3];
      int alert;
      const char *why = checkMessage(*r->session, h[0], partial->left, &alert);
      if (why) return recordFail(r, alert, why);
      if (at == end && partial->left > 0) break;
    }
    const Opened opened = takeBody(r, &at, end);
    if (opened == Opened::kFailed) return opened;
  }
  return Opened::kNothing;
}

/* ---- TLS 1.2 ---- */

/** A HelloRequest or ClientHello asks for a new handshake. The warning says that there is none; the connection ends then. */
static Opened refuseRenegotiation(TlsRecords *r, const uint8_t *bytes, size_t length) {
  const uint8_t asks = r->session->server ? SSL3_MT_CLIENT_HELLO : SSL3_MT_HELLO_REQUEST;
  const bool asked = length > 0 && bytes[0] == asks;
  recordFail(r, asked ? SSL_AD_NO_RENEGOTIATION : SSL_AD_UNEXPECTED_MESSAGE, "unexpected handshake");
  if (asked) r->alert[0] = SSL3_AL_WARNING;
  return Opened::kFailed;
}

Opened recordMessage(TlsRecords *r, uint8_t type, const uint8_t *bytes, size_t length) {
  const bool tls13 = r->session->version == TLS1_3_VERSION;
  if (type == SSL3_RT_HANDSHAKE) return tls13 ? takeHandshake(r, bytes, length) : refuseRenegotiation(r, bytes, length);
  if (r->session->partial.have > 0) return recordFail(r, SSL_AD_UNEXPECTED_MESSAGE, "record inside a handshake message");
  if (type == SSL3_RT_ALERT) return takeAlert(r, bytes, length);
  // an empty record
  if (type == SSL3_RT_APPLICATION_DATA) return Opened::kNothing;
  return recordFail(r, SSL_AD_UNEXPECTED_MESSAGE, "unexpected record");
}

}  // namespace tsb
