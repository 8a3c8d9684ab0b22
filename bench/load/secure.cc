#include "secure.h"

#ifdef LOAD_NO_OPENSSL

namespace load {

bool secureAvailable() { return false; }
Tls::Tls(int) : ssl_(nullptr) {}
Tls::~Tls() {}
Io Tls::handshake() { return Io::kClosed; }
Io Tls::read(char *, int, int *) { return Io::kClosed; }
Io Tls::write(const char *, int, int *) { return Io::kClosed; }
bool Tls::pending() const { return false; }
std::string Scram::first(const std::string &) { return ""; }
std::string Scram::final(const std::string &, const std::string &, SaltedPasswords *) { return ""; }

}  // namespace load

#else

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/ssl.h>

#include <cstdio>
#include <cstdlib>

namespace load {

bool secureAvailable() { return true; }

static SSL_CTX *context() {
  static SSL_CTX *ctx = [] {
    SSL_CTX *made = SSL_CTX_new(TLS_client_method());
    if (!made) {
      fprintf(stderr, "load: OpenSSL could not be initialised\n");
      exit(1);
    }
    SSL_CTX_set_verify(made, SSL_VERIFY_NONE, nullptr);
    SSL_CTX_set_mode(made, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_read_ahead(made, 1);
    return made;
  }();
  return ctx;
}

Tls::Tls(int fd) : ssl_(SSL_new(context())) {
  SSL_set_fd(ssl_, fd);
  SSL_set_connect_state(ssl_);
}

Tls::~Tls() { SSL_free(ssl_); }

Io Tls::resultOf(int result) const {
  const int err = SSL_get_error(ssl_, result);
  return err == SSL_ERROR_WANT_READ || err == SSL_ERROR_WANT_WRITE ? Io::kBlocked : Io::kClosed;
}

Io Tls::handshake() {
  const int result = SSL_do_handshake(ssl_);
  return result == 1 ? Io::kDone : resultOf(result);
}

Io Tls::read(char *into, int size, int *n) {
  *n = SSL_read(ssl_, into, size);
  return *n > 0 ? Io::kDone : resultOf(*n);
}

Io Tls::write(const char *bytes, int size, int *n) {
  *n = SSL_write(ssl_, bytes, size);
  return *n > 0 ? Io::kDone : resultOf(*n);
}

bool Tls::pending() const { return SSL_has_pending(ssl_) == 1; }

/* ---- SCRAM ---- */

static constexpr int kHashBytes = 32;

static std::string base64(const std::string &bytes) {
  std::string text((bytes.size() + 2) / 3 * 4 + 1, '\0');
  const int n = EVP_EncodeBlock(reinterpret_cast<unsigned char *>(&text[0]),
                                reinterpret_cast<const unsigned char *>(bytes.data()), static_cast<int>(bytes.size()));
  text.resize(static_cast<size_t>(n));
  return text;
}

static std::string unbase64(const std::string &text) {
  std::string bytes(text.size() / 4 * 3 + 3, '\0');
  const int n = EVP_DecodeBlock(reinterpret_cast<unsigned char *>(&bytes[0]),
                                reinterpret_cast<const unsigned char *>(text.data()), static_cast<int>(text.size()));
  size_t padding = 0;
  while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=') padding++;
  bytes.resize(n < 0 ? 0 : static_cast<size_t>(n) - padding);
  return bytes;
}

static std::string hmac(const std::string &key, const std::string &text) {
  unsigned char out[kHashBytes];
  unsigned int size = 0;
  HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), reinterpret_cast<const unsigned char *>(text.data()),
       text.size(), out, &size);
  return std::string(reinterpret_cast<char *>(out), size);
}

static std::string sha256(const std::string &text) {
  unsigned char out[kHashBytes];
  unsigned int size = 0;
  EVP_Digest(text.data(), text.size(), out, &size, EVP_sha256(), nullptr);
  return std::string(reinterpret_cast<char *>(out), size);
}

static std::string salted(const std::string &password, const std::string &salt, int iterations) {
  unsigned char out[kHashBytes];
  PKCS5_PBKDF2_HMAC(password.data(), static_cast<int>(password.size()),
                    reinterpret_cast<const unsigned char *>(salt.data()), static_cast<int>(salt.size()), iterations,
                    EVP_sha256(), kHashBytes, out);
  return std::string(reinterpret_cast<char *>(out), kHashBytes);
}

std::string Scram::first(const std::string &nonce) {
  bare_ = "n=,r=" + nonce;
  return "n,," + bare_;
}

/** The value of an attribute such as `r=`, up to the next comma. */
static std::string attribute(const std::string &message, char name) {
  size_t at = 0;
  while (at < message.size()) {
    const size_t end = message.find(',', at);
    const std::string part = message.substr(at, end == std::string::npos ? end : end - at);
    if (part.size() > 2 && part[0] == name && part[1] == '=') return part.substr(2);
    if (end == std::string::npos) break;
    at = end + 1;
  }
  return "";
}

std::string Scram::final(const std::string &serverFirst, const std::string &password, SaltedPasswords *cache) {
  const std::string nonce = attribute(serverFirst, 'r');
  const std::string salt = attribute(serverFirst, 's');
  const int iterations = atoi(attribute(serverFirst, 'i').c_str());
  if (nonce.empty() || salt.empty() || iterations <= 0) return "";
  std::string &key = (*cache)[salt + ',' + std::to_string(iterations)];
  if (key.empty()) key = salted(password, unbase64(salt), iterations);
  const std::string clientKey = hmac(key, "Client Key");
  const std::string withoutProof = "c=biws,r=" + nonce;
  std::string proof = hmac(sha256(clientKey), bare_ + ',' + serverFirst + ',' + withoutProof);
  for (size_t i = 0; i < proof.size(); i++) proof[i] = static_cast<char>(proof[i] ^ clientKey[i]);
  return withoutProof + ",p=" + base64(proof);
}

}  // namespace load

#endif
