/* See peers.h. */
#include "peers.h"

#include <openssl/err.h>
#include <openssl/x509.h>
#include <string.h>

using namespace tsb;

/* ---- bytes ---- */

static int digit(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

Bytes hex(const char *text) {
  std::string digits;
  for (; *text; text++)
    if (*text != ' ') digits += *text;
  Bytes bytes;
  for (size_t i = 0; i + 1 < digits.size(); i += 2) bytes.push_back(static_cast<uint8_t>(digit(digits[i]) << 4 | digit(digits[i + 1])));
  return bytes;
}

std::string hexOf(const uint8_t *bytes, size_t length) {
  static const char digits[] = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < length; i++) {
    text += digits[bytes[i] >> 4];
    text += digits[bytes[i] & 15];
  }
  return text;
}

Random::Random(uint64_t seed) {
  const char *given = getenv("TSB_SEED");
  state_ = seed + (given ? strtoull(given, nullptr, 10) * 1000003 : 0);
}

/** splitmix64 */
uint64_t Random::next() {
  uint64_t z = state_ += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

Bytes Random::bytes(size_t n) {
  Bytes bytes(n);
  for (uint8_t &byte : bytes) byte = static_cast<uint8_t>(next());
  return bytes;
}

/* ---- sessions ---- */

TlsSession sessionOf(int version, uint16_t cipher, bool server, Random *random) {
  TlsSession session = {};
  session.version = version;
  session.cipher = cipher;
  session.server = server;
  session.fragmentMost = kTlsFragmentMost;
  const TlsAead *aead = tlsAeadOf(version, cipher);
  CHECK(aead != nullptr);
  session.secretLength = static_cast<size_t>(EVP_MD_get_size(aead->hash()));
  session.masterLength = 48;
  for (uint8_t *secret : {session.clientSecret, session.serverSecret, session.masterSecret})
    for (size_t i = 0; i < 48; i++) secret[i] = static_cast<uint8_t>(random->next());
  for (uint8_t *value : {session.clientRandom, session.serverRandom})
    for (size_t i = 0; i < kTlsRandomSize; i++) value[i] = static_cast<uint8_t>(random->next());
  session.recordsRead = session.recordsWritten = version == TLS1_3_VERSION ? 0 : 1;
  session.nextNonce = random->next();
  return session;
}

TlsSession otherEnd(const TlsSession &session) {
  TlsSession other = session;
  other.server = !session.server;
  other.recordsRead = session.recordsWritten;
  other.recordsWritten = session.recordsRead;
  other.keyUpdatesRead = session.keyUpdatesWritten;
  other.keyUpdatesWritten = session.keyUpdatesRead;
  return other;
}

Bytes seal(TlsRecords *records, const Bytes &data) {
  Bytes out(recordRoom(data.size()));
  const size_t n = recordSeal(records, data.data(), data.size(), out.data());
  CHECK(n > 0);
  out.resize(n);
  return out;
}

Bytes sealAs(TlsRecords *records, uint8_t type, const Bytes &bytes) {
  Bytes out(recordRoom(bytes.size()));
  const size_t n = recordSealAs(records, type, bytes.data(), bytes.size(), out.data());
  CHECK(n > 0);
  out.resize(n);
  return out;
}

Got open(TlsRecords *records, const Bytes &record) {
  CHECK(record.size() >= kRecordHeader);
  Bytes copy = record;
  Bytes into(record.size() - kRecordHeader);
  size_t got = 0;
  const Opened opened = recordOpen(records, copy.data(), copy.size(), into.data(), &got);
  into.resize(got);
  return {opened, into};
}

/* ---- OpenSSL as the peer ---- */

static EVP_PKEY *keyOf(bool ec) {
  static EVP_PKEY *keys[2];
  EVP_PKEY **key = &keys[ec];
  if (!*key) *key = ec ? EVP_EC_gen("P-256") : EVP_RSA_gen(2048);
  return *key;
}

static X509 *certificate(EVP_PKEY *key) {
  X509 *cert = X509_new();
  X509_set_version(cert, X509_VERSION_3);
  ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
  X509_gmtime_adj(X509_getm_notBefore(cert), -3600);
  X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
  X509_set_pubkey(cert, key);
  X509_sign(cert, key, EVP_sha256());
  return cert;
}

static void setSuite(SSL_CTX *context, int version, const char *suite) {
  SSL_CTX_set_min_proto_version(context, version);
  SSL_CTX_set_max_proto_version(context, version);
  // for the suites with short tags, and those of earlier days
  SSL_CTX_set_security_level(context, 0);
  if (version == TLS1_3_VERSION)
    CHECK_EQUAL(SSL_CTX_set_ciphersuites(context, suite), 1);
  else
    CHECK_EQUAL(SSL_CTX_set_cipher_list(context, suite), 1);
}

static void onKeylog(const SSL *ssl, const char *line) {
  TlsSession *session = static_cast<TlsSession *>(SSL_get_app_data(ssl));
  const std::string text = line;
  const std::string label = text.substr(0, text.find(' '));
  const Bytes secret = hex(text.substr(text.rfind(' ') + 1).c_str());
  if (label == "CLIENT_RANDOM") {
    memcpy(session->masterSecret, secret.data(), session->masterLength = secret.size());
  } else if (label == "CLIENT_TRAFFIC_SECRET_0") {
    memcpy(session->clientSecret, secret.data(), session->secretLength = secret.size());
  } else if (label == "SERVER_TRAFFIC_SECRET_0") {
    memcpy(session->serverSecret, secret.data(), secret.size());
  }
}

Bytes Ends::written(SSL *end) {
  BIO *bio = SSL_get_wbio(end);
  Bytes bytes(static_cast<size_t>(BIO_pending(bio)));
  if (!bytes.empty()) CHECK_EQUAL(BIO_read(bio, bytes.data(), static_cast<int>(bytes.size())), static_cast<int>(bytes.size()));
  return bytes;
}

void Ends::receive(SSL *end, const Bytes &bytes) {
  if (bytes.empty()) return;
  CHECK_EQUAL(BIO_write(SSL_get_rbio(end), bytes.data(), static_cast<int>(bytes.size())), static_cast<int>(bytes.size()));
}

static SSL *newEnd(SSL_CTX *context) {
  SSL *end = SSL_new(context);
  BIO *in = BIO_new(BIO_s_mem());
  BIO *out = BIO_new(BIO_s_mem());
  BIO_set_mem_eof_return(in, -1);
  SSL_set_bio(end, in, out);
  return end;
}

bool Ends::connect(int version, const char *suite) {
  contexts_[0] = SSL_CTX_new(TLS_client_method());
  contexts_[1] = SSL_CTX_new(TLS_server_method());
  for (SSL_CTX *context : contexts_) setSuite(context, version, suite);
  for (const bool ec : {false, true}) {
    X509 *cert = certificate(keyOf(ec));
    SSL_CTX_use_certificate(contexts_[1], cert);
    SSL_CTX_use_PrivateKey(contexts_[1], keyOf(ec));
    X509_free(cert);
  }
  SSL_CTX_set_dh_auto(contexts_[1], 1);
  SSL_CTX_set_num_tickets(contexts_[1], 0);
  SSL_CTX_set_keylog_callback(contexts_[1], onKeylog);
  client = newEnd(contexts_[0]);
  server = newEnd(contexts_[1]);
  SSL_set_app_data(server, &session);
  SSL_set_connect_state(client);
  SSL_set_accept_state(server);
  for (int i = 0; i < 10 && !(SSL_is_init_finished(client) && SSL_is_init_finished(server)); i++) {
    SSL_do_handshake(client);
    receive(server, written(client));
    SSL_do_handshake(server);
    receive(client, written(server));
  }
  ERR_clear_error();
  if (!SSL_is_init_finished(client) || !SSL_is_init_finished(server)) return false;
  session.version = version;
  session.cipher = SSL_CIPHER_get_protocol_id(SSL_get_current_cipher(server));
  session.server = true;
  session.fragmentMost = kTlsFragmentMost;
  SSL_get_client_random(server, session.clientRandom, kTlsRandomSize);
  SSL_get_server_random(server, session.serverRandom, kTlsRandomSize);
  session.recordsRead = session.recordsWritten = version == TLS1_3_VERSION ? 0 : 1;
  return true;
}

Ends::~Ends() {
  SSL_free(client);
  SSL_free(server);
  for (SSL_CTX *context : contexts_) SSL_CTX_free(context);
}

std::vector<std::string> knownSuites(int version) {
  SSL_CTX *context = SSL_CTX_new(TLS_method());
  SSL_CTX_set_cipher_list(context, "ALL:aNULL:COMPLEMENTOFALL:@SECLEVEL=0");
  SSL_CTX_set_ciphersuites(context,
                           "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:"
                           "TLS_AES_128_CCM_SHA256:TLS_AES_128_CCM_8_SHA256");
  std::vector<std::string> names;
  const STACK_OF(SSL_CIPHER) *all = SSL_CTX_get_ciphers(context);
  for (int i = 0; i < sk_SSL_CIPHER_num(all); i++) {
    const SSL_CIPHER *cipher = sk_SSL_CIPHER_value(all, i);
    if (tlsAeadOf(version, SSL_CIPHER_get_protocol_id(cipher))) names.push_back(SSL_CIPHER_get_name(cipher));
  }
  SSL_CTX_free(context);
  return names;
}
