/*
 * A TLS connection as bytes, for another process, of this version or another. The bytes are fields: a number, a length of four
 * bytes, and the value. A reader passes over a field that it does not know, unless the number is kCritical or more: then it
 * cannot continue the connection. Fields that are missing have the value 0.
 *
 * The state is complete between two records. So it has the beginning of a record that has not arrived as a whole, but no
 * decrypted bytes: those belong to the stream.
 */
#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/x509.h>
#include <string.h>

#include <new>

#include "tls/input.h"

namespace tsb {

namespace {

enum Field : uint8_t {
  kVersion = 1,
  kCipher,
  kServer,
  kClientRandom,
  kServerRandom,
  kMasterSecret,
  kClientSecret,
  kServerSecret,
  kKeyUpdatesRead,
  kKeyUpdatesWritten,
  kRecordsRead,
  kRecordsWritten,
  kNextNonce,
  kFragmentMost,
  kPartialHeader,
  kPartialLeft,
  kIdleRecords,
  kUpdateAsked,
  kEnded,
  kClosed,
  kInput,
  kVersionText,
  kCipherText,
  kExchangeText,
  kCertificate,
  kCritical = 128,
};

constexpr size_t kFieldHeader = 5;
/** Only the peer's own certificate is handed over, not its chain. */
constexpr size_t kCertificateMost = 64 * 1024;

/* ---- writing ---- */

class Writer {
 public:
  Writer() { bytes_.reserve(2048); }
  void bytes(Field field, const void *value, size_t length) {
    if (length == 0) return;
    const uint8_t *from = static_cast<const uint8_t *>(value);
    put(field, length);
    bytes_.insert(bytes_.end(), from, from + length);
  }
  void text(Field field, const std::string &value) { bytes(field, value.data(), value.size()); }
  /** Big-endian, as many bytes as it needs. */
  void number(Field field, uint64_t value) {
    uint8_t digits[8];
    size_t n = 0;
    for (; value != 0; value >>= 8) digits[7 - n++] = static_cast<uint8_t>(value);
    bytes(field, digits + 8 - n, n);
  }
  std::vector<uint8_t> take() { return std::move(bytes_); }

 private:
  std::vector<uint8_t> bytes_;

  /** A vector that grows leaves a copy of the secrets behind: the old memory is wiped. */
  void put(Field field, size_t length) {
    const size_t wanted = bytes_.size() + kFieldHeader + length;
    if (wanted > bytes_.capacity()) {
      std::vector<uint8_t> grown;
      grown.reserve(2 * wanted);
      grown.assign(bytes_.begin(), bytes_.end());
      OPENSSL_cleanse(bytes_.data(), bytes_.size());
      bytes_.swap(grown);
    }
    bytes_.push_back(field);
    for (int shift = 24; shift >= 0; shift -= 8) bytes_.push_back(static_cast<uint8_t>(length >> shift));
  }
};

/** OpenSSL answers a request for a key update with the next data, as the record layer does. */
bool updateAsked(const TlsConn *conn) {
  if (conn->records || conn->session.version != TLS1_3_VERSION) return conn->session.updateAsked;
  return SSL_get_key_update_type(conn->ssl) != SSL_KEY_UPDATE_NONE;
}

/** OpenSSL answers an end without close_notify with an alert, behind which no other record may follow. */
bool hasClosed(const TlsConn *conn) { return conn->closed || (!conn->records && SSL_in_init(conn->ssl)); }

void writeSession(Writer *writer, const TlsConn *conn) {
  const TlsSession &session = conn->session;
  writer->number(kVersion, static_cast<uint64_t>(session.version));
  writer->number(kCipher, session.cipher);
  writer->number(kServer, session.server);
  if (session.version == TLS1_3_VERSION) {
    writer->bytes(kClientSecret, session.clientSecret, session.secretLength);
    writer->bytes(kServerSecret, session.serverSecret, session.secretLength);
  } else {
    writer->bytes(kClientRandom, session.clientRandom, kTlsRandomSize);
    writer->bytes(kServerRandom, session.serverRandom, kTlsRandomSize);
    writer->bytes(kMasterSecret, session.masterSecret, session.masterLength);
    writer->number(kNextNonce, session.nextNonce);
  }
  writer->number(kKeyUpdatesRead, session.keyUpdatesRead);
  writer->number(kKeyUpdatesWritten, session.keyUpdatesWritten);
  writer->number(kRecordsRead, session.recordsRead);
  writer->number(kRecordsWritten, session.recordsWritten);
  writer->number(kFragmentMost, session.fragmentMost);
  writer->bytes(kPartialHeader, session.partial.header, session.partial.have);
  writer->number(kPartialLeft, session.partial.left);
  writer->number(kIdleRecords, session.idleRecords);
  writer->number(kUpdateAsked, updateAsked(conn));
}

/* ---- reading ---- */

struct Value {
  const uint8_t *bytes;
  size_t length;
};

/** At most 8 bytes. */
bool numberOf(const Value &value, uint64_t most, uint64_t *number) {
  *number = 0;
  if (value.length > 8) return false;
  for (size_t i = 0; i < value.length; i++) *number = *number << 8 | value.bytes[i];
  return *number <= most;
}

template <typename T>
bool read(const Value &value, uint64_t most, T *into) {
  uint64_t number;
  if (!numberOf(value, most, &number)) return false;
  *into = static_cast<T>(number);
  return true;
}

bool readBytes(const Value &value, uint8_t *into, size_t most, size_t *length) {
  if (value.length > most) return false;
  memcpy(into, value.bytes, value.length);
  if (length) *length = value.length;
  return true;
}

bool readSecret(const Value &value, uint8_t *into, size_t *length) {
  // both secrets have the length of the hash
  if (*length != 0 && *length != value.length) return false;
  return readBytes(value, into, kTlsSecretMax, length);
}

bool readPartial(const Value &value, TlsPartialMessage *partial) {
  partial->have = static_cast<uint8_t>(value.length);
  return readBytes(value, partial->header, sizeof(partial->header), nullptr);
}

bool readText(const Value &value, size_t most, std::string *into) {
  into->assign(reinterpret_cast<const char *>(value.bytes), value.length);
  return value.length <= most;
}

bool readField(TlsConn *conn, uint8_t field, const Value &value) {
  TlsSession *session = &conn->session;
  constexpr size_t kTextMost = 256;
  switch (field) {
    case kVersion:
      return read(value, 0xffff, &session->version);
    case kCipher:
      return read(value, 0xffff, &session->cipher);
    case kServer:
      return read(value, 1, &session->server);
    case kClientRandom:
      return readBytes(value, session->clientRandom, kTlsRandomSize, nullptr);
    case kServerRandom:
      return readBytes(value, session->serverRandom, kTlsRandomSize, nullptr);
    case kMasterSecret:
      return readBytes(value, session->masterSecret, kTlsSecretMax, &session->masterLength);
    case kClientSecret:
      return readSecret(value, session->clientSecret, &session->secretLength);
    case kServerSecret:
      return readSecret(value, session->serverSecret, &session->secretLength);
    case kKeyUpdatesRead:
      return read(value, UINT32_MAX, &session->keyUpdatesRead);
    case kKeyUpdatesWritten:
      return read(value, UINT32_MAX, &session->keyUpdatesWritten);
    case kRecordsRead:
      return read(value, UINT64_MAX, &session->recordsRead);
    case kRecordsWritten:
      return read(value, UINT64_MAX, &session->recordsWritten);
    case kNextNonce:
      return read(value, UINT64_MAX, &session->nextNonce);
    case kFragmentMost:
      return read(value, kTlsFragmentMost, &session->fragmentMost);
    case kPartialHeader:
      return readPartial(value, &session->partial);
    case kPartialLeft:
      return read(value, kTicketMost, &session->partial.left);
    case kIdleRecords:
      return read(value, kIdleRecordsMost, &session->idleRecords);
    case kUpdateAsked:
      return read(value, 1, &session->updateAsked);
    case kEnded:
      return read(value, 1, &conn->ended);
    case kClosed:
      return read(value, 1, &conn->closed);
    case kInput:
      return tlsConnPrefix(conn, value.bytes, value.length);
    case kVersionText:
      return readText(value, kTextMost, &conn->known.version);
    case kCipherText:
      return readText(value, kTextMost, &conn->known.cipher);
    case kExchangeText:
      return readText(value, kTextMost, &conn->known.exchange);
    case kCertificate:
      return readText(value, kCertificateMost, &conn->certificate);
    default:
      return field < kCritical;
  }
}

bool readFields(TlsConn *conn, const uint8_t *bytes, size_t length) {
  const uint8_t *end = bytes + length;
  while (bytes < end) {
    if (static_cast<size_t>(end - bytes) < kFieldHeader) return false;
    const uint8_t field = bytes[0];
    const size_t n = static_cast<size_t>(bytes[1]) << 24 | static_cast<size_t>(bytes[2]) << 16 |
                     static_cast<size_t>(bytes[3]) << 8 | bytes[4];
    bytes += kFieldHeader;
    if (n > static_cast<size_t>(end - bytes) || !readField(conn, field, {bytes, n})) return false;
    bytes += n;
  }
  return true;
}

std::string certificateOf(const TlsConn *conn) {
  if (conn->records) return conn->certificate;
  std::string der;
  X509 *cert = conn->session.server ? SSL_get0_peer_certificate(conn->ssl) : nullptr;
  const int length = cert ? i2d_X509(cert, nullptr) : 0;
  if (length <= 0) return der;
  der.resize(static_cast<size_t>(length));
  unsigned char *into = reinterpret_cast<unsigned char *>(&der[0]);
  i2d_X509(cert, &into);
  return der;
}

}  // namespace

const char *tlsLastingRefusal(const TlsConn *conn) {
  if (!conn->established) return nullptr;
  if (const char *refusal = recordRefusal(conn->session)) return refusal;
  return certificateOf(conn).size() > kCertificateMost ? "certificate too long" : nullptr;
}

const char *tlsRefusal(const TlsConn *conn) {
  if (!conn->established) return "handshake under way";
  if (conn->sendErrno || conn->recvErrno || (conn->ended && conn->endResult != 0)) return "connection broken";
  if (const char *refusal = tlsLastingRefusal(conn)) return refusal;
  // OpenSSL holds what it has of such a message; none follows behind the end of the stream
  const bool partial = !conn->records && (conn->messagePartial || conn->recordLeft > 0 || SSL_in_init(conn->ssl));
  if (partial && !conn->ended) return "inside a message";
  return inputLength(conn) > kTlsPieceSize || recordReady(conn) ? "undecrypted records" : nullptr;
}

std::vector<uint8_t> tlsExport(const TlsConn *conn) {
  Writer writer;
  writeSession(&writer, conn);
  writer.number(kEnded, conn->ended);
  writer.number(kClosed, hasClosed(conn));
  uint8_t scratch[kTlsPieceSize];
  const size_t input = inputLength(conn);
  if (input > 0 && input <= sizeof(scratch)) writer.bytes(kInput, inputFirst(conn, input, scratch), input);
  const TlsInfo info = tlsInfoOf(conn);
  writer.text(kVersionText, info.version);
  writer.text(kCipherText, info.cipher);
  writer.text(kExchangeText, info.exchange);
  writer.text(kCertificate, certificateOf(conn));
  return writer.take();
}

TlsConn *tlsImport(const uint8_t *bytes, size_t length, int *err) {
  *err = -ENOMEM;
  TlsConn *conn = new (std::nothrow) TlsConn();
  if (!conn) return nullptr;
  conn->session.fragmentMost = kTlsFragmentMost;
  *err = -EINVAL;
  const bool valid = readFields(conn, bytes, length) && conn->session.fragmentMost >= 512;
  if (valid) conn->records = recordsNew(&conn->session);
  if (conn->records) {
    conn->established = true;
    conn->frozen = true;
    conn->endDue = conn->ended;
    *err = 0;
    return conn;
  }
  tlsConnFree(conn);
  return nullptr;
}

}  // namespace tsb
