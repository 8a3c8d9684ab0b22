/*
 * The record layer of an established TLS connection, over OpenSSL's public ciphers. It continues what OpenSSL's own SSL
 * began, in this process or in an earlier one: OpenSSL has no call that makes an SSL from the keys of a session. It depends
 * on no socket and allocates only when it is made and at key updates.
 *
 * TLS 1.3 (RFC 8446) and TLS 1.2 (RFC 5246) with the suites that are an AEAD: GCM, CCM (RFC 5288, 6655), ChaCha20-Poly1305
 * (RFC 7905). A handshake never follows: of the messages behind a handshake only key updates change anything.
 */
#pragma once

#include <openssl/ssl.h>

#include "tls/keys.h"
#include "tls/session.h"

namespace tsb {

/** Of a record: type, version, and the length of what follows. */
constexpr size_t kRecordHeader = 5;
/** What a record can have besides its data and header: explicit nonce and tag, or content type and tag. */
constexpr size_t kRecordOverhead = 8 + 16;
/** Longest record of either version, padding included. */
constexpr size_t kRecordMost = kRecordHeader + kTlsFragmentMost + 2048;
/** A key update, which may go before data. */
constexpr size_t kKeyUpdateRecord = kRecordHeader + 5 + 1 + 16;
/** Room for what recordSeal() writes. */
constexpr size_t recordRoom(size_t length) { return kKeyUpdateRecord + kRecordHeader + length + kRecordOverhead; }
/**
 * Records that are written with one key of TLS 1.3: the bound of CCM (RFC 9147, 4.5.3), the lowest of all suites. With AES-GCM
 * RFC 8446 allows 2^24.5.
 */
constexpr uint64_t kRecordsPerKey = 1 << 23;
/** Records in a row that bring no data, as in BoringSSL; among them key updates. */
constexpr uint32_t kIdleRecordsMost = 32;
/** Longest session ticket that is passed over, as in OpenSSL. */
constexpr uint32_t kTicketMost = 131338;

/** One direction. */
struct RecordSide {
  /** null before the first record */
  EVP_CIPHER_CTX *cipher;
  /** with an explicit nonce, only the first four bytes */
  uint8_t iv[kTlsNonceSize];
};

struct TlsRecords {
  /** of the owner; kept current, so that it can be exported between any two calls */
  TlsSession *session;
  const TlsAead *aead;
  RecordSide reading;
  RecordSide writing;
  /** kRecordsPerKey; tests set less */
  uint64_t recordsPerKey;
  /** after kFailed: the alert to be sent, level and description; 0 = none */
  uint8_t alert[2];
  /** and why */
  const char *why;
};

/** Why the connection of this session cannot be continued; null = it can be. */
const char *recordRefusal(const TlsSession &session);
/** Null when the session cannot be continued, or memory is exhausted. */
TlsRecords *recordsNew(TlsSession *session);
/** Wipes the keys. The session stays. */
void recordsFree(TlsRecords *records);

/* ---- reading ---- */

/** Length of the record that begins with this header. */
inline size_t recordLength(const uint8_t *header) {
  return kRecordHeader + (static_cast<size_t>(header[3]) << 8 | header[4]);
}

enum class Opened {
  kData,    // *got bytes
  kNothing, // no data: an empty record, or a message that was for the record layer
  kClosed,  // the peer sends no more
  kFailed,  // the connection has to be closed: records->alert, records->why
};

/**
 * Decrypts one record. `have`: as many bytes as it has; a header is enough for a record longer than kRecordMost, which
 * fails. `into` needs room for `have` - kRecordHeader bytes and may be record + kRecordHeader.
 */
Opened recordOpen(TlsRecords *records, const uint8_t *record, size_t have, uint8_t *into, size_t *got);

/* ---- writing ---- */

/**
 * Encrypts data as one record, behind a key update when one is due. `length`: at most session->fragmentMost. `into` needs
 * recordRoom(length) bytes. Returns the length of what is to be sent, 0 when the key is used up or OpenSSL fails.
 */
size_t recordSeal(TlsRecords *records, const uint8_t *bytes, size_t length, uint8_t *into);
/** Likewise for an alert: { SSL3_AL_WARNING, SSL_AD_CLOSE_NOTIFY }, or records->alert. */
size_t recordSealAlert(TlsRecords *records, const uint8_t alert[2], uint8_t *into);

/* ---- between the files of the record layer ---- */

/** Makes the key of a direction from the session. */
bool recordKey(TlsRecords *records, bool ofReading);
/** Encrypts one record of any type. */
size_t recordSealAs(TlsRecords *records, uint8_t type, const uint8_t *bytes, size_t length, uint8_t *into);
/** What a decrypted record says that is not data: tls/message.cc. */
Opened recordMessage(TlsRecords *records, uint8_t type, const uint8_t *bytes, size_t length);
/** Sets the alert to be sent, with the level fatal, and the text. */
Opened recordFail(TlsRecords *records, int alert, const char *why);

}  // namespace tsb
