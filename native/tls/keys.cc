/* See keys.h. Everything that is derived here is shorter than a hash or made by TLS 1.2's PRF, so HMAC is enough. */
#include "tls/keys.h"

#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <openssl/tls1.h>
#include <string.h>

#include <algorithm>
#include <string>

namespace tsb {

/* ---- suites ---- */

static const TlsAead kAes128Gcm = {EVP_aes_128_gcm, EVP_sha256, 16, 16, 8, false};
static const TlsAead kAes256Gcm = {EVP_aes_256_gcm, EVP_sha384, 32, 16, 8, false};
static const TlsAead kChaCha20 = {EVP_chacha20_poly1305, EVP_sha256, 32, 16, 0, false};
static const TlsAead kAes128Ccm = {EVP_aes_128_ccm, EVP_sha256, 16, 16, 8, true};
static const TlsAead kAes128Ccm8 = {EVP_aes_128_ccm, EVP_sha256, 16, 8, 8, true};
static const TlsAead kAes256Ccm = {EVP_aes_256_ccm, EVP_sha256, 32, 16, 8, true};
static const TlsAead kAes256Ccm8 = {EVP_aes_256_ccm, EVP_sha256, 32, 8, 8, true};

struct SuiteRow {
  uint16_t cipher;
  const TlsAead *aead;
};

static const SuiteRow kSuites13[] = {
    {0x1301, &kAes128Gcm}, {0x1302, &kAes256Gcm}, {0x1303, &kChaCha20}, {0x1304, &kAes128Ccm}, {0x1305, &kAes128Ccm8},
};

/** In this order of the key exchange: RSA, DHE_RSA, DHE_DSS, DH_anon, ECDHE_ECDSA, ECDHE_RSA. */
static const SuiteRow kSuites12[] = {
    // RFC 5288 and 5289
    {0x009c, &kAes128Gcm}, {0x009e, &kAes128Gcm}, {0x00a2, &kAes128Gcm}, {0x00a6, &kAes128Gcm}, {0xc02b, &kAes128Gcm},
    {0xc02f, &kAes128Gcm}, {0x009d, &kAes256Gcm}, {0x009f, &kAes256Gcm}, {0x00a3, &kAes256Gcm}, {0x00a7, &kAes256Gcm},
    {0xc02c, &kAes256Gcm}, {0xc030, &kAes256Gcm},
    // RFC 7905
    {0xccaa, &kChaCha20}, {0xcca9, &kChaCha20}, {0xcca8, &kChaCha20},
    // RFC 6655 and 7251
    {0xc09c, &kAes128Ccm}, {0xc09e, &kAes128Ccm}, {0xc0ac, &kAes128Ccm}, {0xc09d, &kAes256Ccm}, {0xc09f, &kAes256Ccm},
    {0xc0ad, &kAes256Ccm}, {0xc0a0, &kAes128Ccm8}, {0xc0a2, &kAes128Ccm8}, {0xc0ae, &kAes128Ccm8},
    {0xc0a1, &kAes256Ccm8}, {0xc0a3, &kAes256Ccm8}, {0xc0af, &kAes256Ccm8},
};

template <size_t N>
static const TlsAead *find(const SuiteRow (&rows)[N], uint16_t cipher) {
  for (const SuiteRow &row : rows)
    if (row.cipher == cipher) return row.aead;
  return nullptr;
}

const TlsAead *tlsAeadOf(int version, uint16_t cipher) {
  if (version == TLS1_3_VERSION) return find(kSuites13, cipher);
  return version == TLS1_2_VERSION ? find(kSuites12, cipher) : nullptr;
}

TlsKey::~TlsKey() { OPENSSL_cleanse(this, sizeof(*this)); }

/* ---- TLS 1.3 ---- */

/** HKDF-Expand-Label with an empty context (RFC 8446, 7.1), up to the length of the hash: one block of HKDF-Expand. */
static bool expandLabel(const TlsAead *aead, const uint8_t *secret, size_t length, const char *label, uint8_t *into,
                        size_t wanted) {
  const std::string prefix = "tls13 ";
  const size_t labelLength = prefix.size() + strlen(label);
  std::string info = {static_cast<char>(wanted >> 8), static_cast<char>(wanted), static_cast<char>(labelLength)};
  info += prefix + label;
  info += '\0';
  info += '\1';
  uint8_t block[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  const bool done = HMAC(aead->hash(), secret, static_cast<int>(length), reinterpret_cast<const uint8_t *>(info.data()),
                         info.size(), block, &size) &&
                    size >= wanted;
  if (done) memcpy(into, block, wanted);
  OPENSSL_cleanse(block, sizeof(block));
  return done;
}

bool tlsTrafficKey(const TlsAead *aead, const uint8_t *secret, size_t length, TlsKey *key) {
  return expandLabel(aead, secret, length, "key", key->key, aead->keyLength) &&
         expandLabel(aead, secret, length, "iv", key->iv, kTlsNonceSize);
}

bool tlsNextSecret(const TlsAead *aead, uint8_t *secret, size_t length) {
  return expandLabel(aead, secret, length, "traffic upd", secret, length);
}

/* ---- TLS 1.2 ---- */

/** P_hash of RFC 5246, section 5. `seed` begins with the label. */
static bool pseudoRandom(const TlsAead *aead, const uint8_t *secret, size_t length, const std::string &seed,
                         uint8_t *into, size_t wanted) {
  const EVP_MD *hash = aead->hash();
  const int secretLength = static_cast<int>(length);
  // A(i), with the seed behind it
  uint8_t input[EVP_MAX_MD_SIZE + 128];
  uint8_t block[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  if (seed.size() > sizeof(input) - EVP_MAX_MD_SIZE) return false;
  const uint8_t *seedBytes = reinterpret_cast<const uint8_t *>(seed.data());
  bool done = HMAC(hash, secret, secretLength, seedBytes, seed.size(), input, &size) != nullptr;
  for (size_t at = 0; done && at < wanted; at += size) {
    memcpy(input + size, seedBytes, seed.size());
    done = HMAC(hash, secret, secretLength, input, size + seed.size(), block, &size) != nullptr;
    if (!done) break;
    memcpy(into + at, block, std::min<size_t>(size, wanted - at));
    done = HMAC(hash, secret, secretLength, input, size, block, &size) != nullptr;
    memcpy(input, block, size);
  }
  OPENSSL_cleanse(input, sizeof(input));
  OPENSSL_cleanse(block, sizeof(block));
  return done;
}

bool tlsBlockKey(const TlsAead *aead, const TlsSession &session, bool ofServer, TlsKey *key) {
  const size_t fixed = kTlsNonceSize - aead->explicitLength;
  std::string seed = "key expansion";
  seed.append(reinterpret_cast<const char *>(session.serverRandom), kTlsRandomSize);
  seed.append(reinterpret_cast<const char *>(session.clientRandom), kTlsRandomSize);
  // the client's key, the server's, then their IVs; an AEAD has no MAC keys
  uint8_t block[2 * (kTlsKeyMost + kTlsNonceSize)];
  const bool done = pseudoRandom(aead, session.masterSecret, session.masterLength, seed, block, 2 * (aead->keyLength + fixed));
  if (done) {
    memcpy(key->key, block + (ofServer ? aead->keyLength : 0), aead->keyLength);
    memcpy(key->iv, block + 2 * aead->keyLength + (ofServer ? fixed : 0), fixed);
  }
  OPENSSL_cleanse(block, sizeof(block));
  return done;
}

}  // namespace tsb
