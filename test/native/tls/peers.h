/* What the tests of the record layer share: sessions, bytes, and OpenSSL as the peer. */
#pragma once

#include <openssl/ssl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "../check.h"
#include "tls/record.h"

using Bytes = std::vector<uint8_t>;

Bytes hex(const char *text);
std::string hexOf(const uint8_t *bytes, size_t length);
inline std::string hexOf(const Bytes &bytes) { return hexOf(bytes.data(), bytes.size()); }

/** Reproducible numbers; TSB_SEED changes them. */
class Random {
 public:
  explicit Random(uint64_t seed);
  uint64_t next();
  size_t below(size_t n) { return static_cast<size_t>(next() % n); }
  bool oneIn(size_t n) { return below(n) == 0; }
  Bytes bytes(size_t n);

 private:
  uint64_t state_;
};

/** A session of that suite with secrets of the seed, as after a handshake. */
tsb::TlsSession sessionOf(int version, uint16_t cipher, bool server, Random *random);
/** The same connection at the other end. */
tsb::TlsSession otherEnd(const tsb::TlsSession &session);

/** One record, or with a key update in front of it. Fails the test when that fails. */
Bytes seal(tsb::TlsRecords *records, const Bytes &data);
/** A record of any type. */
Bytes sealAs(tsb::TlsRecords *records, uint8_t type, const Bytes &bytes);

struct Got {
  tsb::Opened opened;
  Bytes data;
};
/** Opens one record from a copy of exactly its length, so that the sanitizer sees every byte beyond it. */
Got open(tsb::TlsRecords *records, const Bytes &record);

/** One end of a connection that OpenSSL makes, in memory. */
struct Ends {
  SSL *client = nullptr;
  SSL *server = nullptr;
  /** of the server's end, as the keylog gave it; the numbers are those after the handshake */
  tsb::TlsSession session = {};

  Ends() = default;
  Ends(const Ends &) = delete;
  ~Ends();
  /** Makes the handshake. False when OpenSSL has no such suite, or none of the test's certificates is for it. */
  bool connect(int version, const char *suite);
  /** What an end has written. */
  static Bytes written(SSL *end);
  static void receive(SSL *end, const Bytes &bytes);

 private:
  SSL_CTX *contexts_[2] = {};
};

/** Names of all suites of that version that the record layer knows and OpenSSL has. */
std::vector<std::string> knownSuites(int version);
