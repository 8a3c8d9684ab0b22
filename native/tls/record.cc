/* Encrypting and decrypting single records. See record.h. */
#include "tls/record.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <string.h>

#include <new>

namespace tsb {

/** The version that records of TLS 1.2 and 1.3 name. */
constexpr uint8_t kVersionMajor = 3;
constexpr uint8_t kVersionMinor = 3;
/** Longest that follows a header: RFC 8446, 5.2, and RFC 5246, 6.2.3. */
constexpr size_t kLongest13 = kTlsFragmentMost + 256;
constexpr size_t kLongest12 = kTlsFragmentMost + 2048;
/** Additional data of TLS 1.2: number, type, version, length. */
constexpr size_t kAdditional12 = 13;

static bool isTls13(const TlsRecords *r) { return r->session->version == TLS1_3_VERSION; }

static void putNumber(uint8_t *into, uint64_t number) {
  for (int i = 7; i >= 0; i--, number >>= 8) into[i] = static_cast<uint8_t>(number);
}

/* ---- life ---- */

const char *recordRefusal(const TlsSession &session) {
  if (session.version < TLS1_2_VERSION) return "TLS older than 1.2";
  if (!tlsAeadOf(session.version, session.cipher)) return "cipher suite without AEAD";
  const bool known = session.version == TLS1_3_VERSION ? session.secretLength > 0 : session.masterLength > 0;
  return known ? nullptr : "secrets not known";
}

static bool setKey(const TlsRecords *r, RecordSide *side, const TlsKey &key, bool encrypt) {
  const int tagLength = static_cast<int>(r->aead->tagLength);
  EVP_CIPHER_CTX *cipher = side->cipher;
  memcpy(side->iv, key.iv, sizeof(side->iv));
  return EVP_CipherInit_ex(cipher, r->aead->cipher(), nullptr, nullptr, nullptr, encrypt) == 1 &&
         EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_SET_IVLEN, kTlsNonceSize, nullptr) == 1 &&
         (!r->aead->ccm || EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_SET_TAG, tagLength, nullptr) == 1) &&
         EVP_CipherInit_ex(cipher, nullptr, nullptr, key.key, nullptr, encrypt) == 1;
}

bool recordKey(TlsRecords *r, bool ofReading) {
  const TlsSession &session = *r->session;
  RecordSide *side = ofReading ? &r->reading : &r->writing;
  if (!side->cipher) side->cipher = EVP_CIPHER_CTX_new();
  // a server reads what the client writes
  const bool ofServer = session.server != ofReading;
  TlsKey key = {};
  const bool made = isTls13(r) ? tlsTrafficKey(r->aead, ofServer ? session.serverSecret : session.clientSecret,
                                               session.secretLength, &key)
                               : tlsBlockKey(r->aead, session, ofServer, &key);
  if (side->cipher && made && setKey(r, side, key, !ofReading)) return true;
  EVP_CIPHER_CTX_free(side->cipher);
  side->cipher = nullptr;
  ERR_clear_error();
  return false;
}

/** Makes the key of a direction before its first record: most connections of a handover are idle, and the process has much to
 *  do. */
static bool hasKey(TlsRecords *r, bool ofReading) {
  return (ofReading ? r->reading : r->writing).cipher || recordKey(r, ofReading);
}

TlsRecords *recordsNew(TlsSession *session) {
  if (recordRefusal(*session)) return nullptr;
  TlsRecords *r = new (std::nothrow) TlsRecords();
  if (!r) return nullptr;
  r->session = session;
  r->aead = tlsAeadOf(session->version, session->cipher);
  r->recordsPerKey = kRecordsPerKey;
  return r;
}

void recordsFree(TlsRecords *r) {
  if (!r) return;
  EVP_CIPHER_CTX_free(r->reading.cipher);
  EVP_CIPHER_CTX_free(r->writing.cipher);
  OPENSSL_cleanse(r, sizeof(*r));
  delete r;
}

/* ---- one record ---- */

struct Nonce {
  uint8_t bytes[kTlsNonceSize];
};

/** The IV, xor the number in its last eight bytes. */
static Nonce numberedNonce(const RecordSide &side, uint64_t number) {
  Nonce nonce;
  memcpy(nonce.bytes, side.iv, kTlsNonceSize);
  for (size_t i = kTlsNonceSize; number != 0; number >>= 8) nonce.bytes[--i] ^= static_cast<uint8_t>(number);
  return nonce;
}

static Nonce explicitNonce(const RecordSide &side, const uint8_t *rest, size_t length) {
  Nonce nonce;
  memcpy(nonce.bytes, side.iv, kTlsNonceSize - length);
  memcpy(nonce.bytes + kTlsNonceSize - length, rest, length);
  return nonce;
}

/** Writes the additional data. Returns its length. In TLS 1.3 it is the header. */
static size_t additional(const TlsRecords *r, uint64_t number, const uint8_t *header, size_t length, uint8_t *into) {
  if (isTls13(r)) {
    memcpy(into, header, kRecordHeader);
    return kRecordHeader;
  }
  putNumber(into, number);
  memcpy(into + 8, header, 3);
  into[11] = static_cast<uint8_t>(length >> 8);
  into[12] = static_cast<uint8_t>(length);
  return kAdditional12;
}

/** The steps that both directions share: nonce, length for CCM, additional data. */
static bool begin(const TlsRecords *r, EVP_CIPHER_CTX *cipher, const Nonce &nonce, const uint8_t *added, size_t addedLength,
                  size_t length) {
  int n = 0;
  return EVP_CipherInit_ex(cipher, nullptr, nullptr, nullptr, nonce.bytes, -1) == 1 &&
         (!r->aead->ccm || EVP_CipherUpdate(cipher, nullptr, &n, nullptr, static_cast<int>(length)) == 1) &&
         EVP_CipherUpdate(cipher, nullptr, &n, added, static_cast<int>(addedLength)) == 1;
}

/* ---- writing ---- */

/** Encrypts bytes, and behind them the content type (`type` not null). */
static bool encrypt(const TlsRecords *r, const uint8_t *bytes, size_t length, const uint8_t *type, uint8_t *into) {
  EVP_CIPHER_CTX *cipher = r->writing.cipher;
  const size_t whole = length + (type ? 1 : 0);
  const int tagLength = static_cast<int>(r->aead->tagLength);
  int n = 0;
  if (r->aead->ccm) {
    // CCM takes everything in one call
    if (length > 0) memmove(into, bytes, length);
    if (type) into[length] = *type;
    if (EVP_CipherUpdate(cipher, into, &n, into, static_cast<int>(whole)) != 1) return false;
  } else {
    if (length > 0 && EVP_CipherUpdate(cipher, into, &n, bytes, static_cast<int>(length)) != 1) return false;
    if (type && EVP_CipherUpdate(cipher, into + length, &n, type, 1) != 1) return false;
  }
  return EVP_CipherFinal_ex(cipher, into + whole, &n) == 1 &&
         EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_GET_TAG, tagLength, into + whole) == 1;
}

size_t recordSealAs(TlsRecords *r, uint8_t type, const uint8_t *bytes, size_t length, uint8_t *into) {
  TlsSession *session = r->session;
  const size_t explicitLength = isTls13(r) ? 0 : r->aead->explicitLength;
  const size_t plain = length + (isTls13(r) ? 1 : 0);
  const size_t follows = explicitLength + plain + r->aead->tagLength;
  if (session->recordsWritten == UINT64_MAX || !hasKey(r, false)) return 0;
  into[0] = isTls13(r) ? static_cast<uint8_t>(SSL3_RT_APPLICATION_DATA) : type;
  into[1] = kVersionMajor;
  into[2] = kVersionMinor;
  into[3] = static_cast<uint8_t>(follows >> 8);
  into[4] = static_cast<uint8_t>(follows);
  uint8_t *body = into + kRecordHeader;
  Nonce nonce;
  if (explicitLength > 0) {
    putNumber(body, session->nextNonce++);
    nonce = explicitNonce(r->writing, body, explicitLength);
  } else {
    nonce = numberedNonce(r->writing, session->recordsWritten);
  }
  uint8_t added[kAdditional12];
  const size_t addedLength = additional(r, session->recordsWritten++, into, length, added);
  const bool done = begin(r, r->writing.cipher, nonce, added, addedLength, plain) &&
                    encrypt(r, bytes, length, isTls13(r) ? &type : nullptr, body + explicitLength);
  if (!done) ERR_clear_error();
  return done ? kRecordHeader + follows : 0;
}

/** Sends a key update when the peer asked for one, or the key has protected enough. Its answer is not needed. */
static bool sealKeyUpdate(TlsRecords *r, uint8_t *into, size_t *length) {
  TlsSession *session = r->session;
  *length = 0;
  if (!isTls13(r) || (!session->updateAsked && session->recordsWritten < r->recordsPerKey)) return true;
  static const uint8_t message[] = {SSL3_MT_KEY_UPDATE, 0, 0, 1, SSL_KEY_UPDATE_NOT_REQUESTED};
  *length = recordSealAs(r, SSL3_RT_HANDSHAKE, message, sizeof(message), into);
  uint8_t *secret = session->server ? session->serverSecret : session->clientSecret;
  if (*length == 0 || !tlsNextSecret(r->aead, secret, session->secretLength) || !recordKey(r, false)) return false;
  session->recordsWritten = 0;
  session->keyUpdatesWritten++;
  session->updateAsked = false;
  return true;
}

size_t recordSeal(TlsRecords *r, const uint8_t *bytes, size_t length, uint8_t *into) {
  size_t before;
  if (length > r->session->fragmentMost || !sealKeyUpdate(r, into, &before)) return 0;
  const size_t n = recordSealAs(r, SSL3_RT_APPLICATION_DATA, bytes, length, into + before);
  return n > 0 ? before + n : 0;
}

size_t recordSealAlert(TlsRecords *r, const uint8_t alert[2], uint8_t *into) {
  return recordSealAs(r, SSL3_RT_ALERT, alert, 2, into);
}

/* ---- reading ---- */

Opened recordFail(TlsRecords *r, int alert, const char *why) {
  r->alert[0] = SSL3_AL_FATAL;
  r->alert[1] = static_cast<uint8_t>(alert);
  r->why = why;
  return Opened::kFailed;
}

/** What can be seen before a record is decrypted. Null when it may be decrypted. */
static const char *checkHeader(const TlsRecords *r, const uint8_t *header, int *alert) {
  const size_t follows = recordLength(header) - kRecordHeader;
  const bool known = isTls13(r) ? header[0] == SSL3_RT_APPLICATION_DATA
                                : header[0] >= SSL3_RT_CHANGE_CIPHER_SPEC && header[0] <= SSL3_RT_APPLICATION_DATA;
  *alert = SSL_AD_UNEXPECTED_MESSAGE;
  if (!known) return "unexpected record";
  *alert = SSL_AD_PROTOCOL_VERSION;
  if (header[1] != kVersionMajor || header[2] != kVersionMinor) return "wrong version number";
  *alert = SSL_AD_RECORD_OVERFLOW;
  if (follows > (isTls13(r) ? kLongest13 : kLongest12)) return "encrypted length too long";
  *alert = SSL_AD_BAD_RECORD_MAC;
  const size_t least = r->aead->tagLength + (isTls13(r) ? 1 : r->aead->explicitLength);
  return follows < least ? "length too short" : nullptr;
}

/** Decrypts the bytes behind the header into `into`. False when the tag does not match. */
static bool decrypt(const TlsRecords *r, const uint8_t *record, size_t explicitLength, size_t plain, uint8_t *into) {
  EVP_CIPHER_CTX *cipher = r->reading.cipher;
  const uint64_t number = r->session->recordsRead;
  const uint8_t *body = record + kRecordHeader;
  const Nonce nonce =
      explicitLength > 0 ? explicitNonce(r->reading, body, explicitLength) : numberedNonce(r->reading, number);
  body += explicitLength;
  uint8_t tag[EVP_MAX_BLOCK_LENGTH];
  memcpy(tag, body + plain, r->aead->tagLength);
  uint8_t added[kAdditional12];
  const size_t addedLength = additional(r, number, record, plain, added);
  int n = 0;
  // CCM compares the tag as it decrypts, the others at the end
  return EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_SET_TAG, static_cast<int>(r->aead->tagLength), tag) == 1 &&
         begin(r, cipher, nonce, added, addedLength, plain) &&
         ((plain == 0 && !r->aead->ccm) || EVP_CipherUpdate(cipher, into, &n, body, static_cast<int>(plain)) == 1) &&
         (r->aead->ccm || EVP_CipherFinal_ex(cipher, into + plain, &n) == 1);
}

/** TLS 1.3: the type is the last byte that is not padding. Returns 0 when there is none. */
static uint8_t takeType(const uint8_t *bytes, size_t *length) {
  while (*length > 0)
    if (bytes[--*length] != 0) return bytes[*length];
  return 0;
}

Opened recordOpen(TlsRecords *r, const uint8_t *record, size_t have, uint8_t *into, size_t *got) {
  TlsSession *session = r->session;
  *got = 0;
  int alert;
  const char *why = checkHeader(r, record, &alert);
  if (why) return recordFail(r, alert, why);
  const size_t explicitLength = isTls13(r) ? 0 : r->aead->explicitLength;
  size_t length = recordLength(record) - kRecordHeader - explicitLength - r->aead->tagLength;
  if (have < recordLength(record) || session->recordsRead == UINT64_MAX)
    return recordFail(r, SSL_AD_INTERNAL_ERROR, "no whole record");
  if (!hasKey(r, true)) return recordFail(r, SSL_AD_INTERNAL_ERROR, "no key");
  // the header may be overwritten from here on
  uint8_t type = record[0];
  if (!decrypt(r, record, explicitLength, length, into)) {
    ERR_clear_error();
    return recordFail(r, SSL_AD_BAD_RECORD_MAC, "decryption failed or bad record mac");
  }
  session->recordsRead++;
  if (isTls13(r)) type = takeType(into, &length);
  if (length > session->fragmentMost) return recordFail(r, SSL_AD_RECORD_OVERFLOW, "data length too long");
  if (type != SSL3_RT_APPLICATION_DATA || length == 0) {
    if (++session->idleRecords > kIdleRecordsMost) return recordFail(r, SSL_AD_UNEXPECTED_MESSAGE, "too many records without data");
    return recordMessage(r, type, into, length);
  }
  if (session->partial.have > 0) return recordFail(r, SSL_AD_UNEXPECTED_MESSAGE, "data inside a handshake message");
  session->idleRecords = 0;
  *got = length;
  return Opened::kData;
}

}  // namespace tsb
