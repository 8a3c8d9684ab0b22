/* The suites that can be continued, and their keys, from the secrets of a session. */
#pragma once

#include <openssl/evp.h>

#include "tls/session.h"

namespace tsb {

constexpr size_t kTlsKeyMost = 32;
/** Of every AEAD of TLS; the tag has this size too, except with CCM_8. */
constexpr size_t kTlsNonceSize = 12;

/** An AEAD with its hash. Several suites of TLS 1.2, which differ in their key exchange, share one. */
struct TlsAead {
  const EVP_CIPHER *(*cipher)();
  const EVP_MD *(*hash)();
  size_t keyLength;
  size_t tagLength;
  /** of a TLS 1.2 record: 8 with GCM and CCM, in front of the encrypted bytes; 0 with ChaCha20 */
  size_t explicitLength;
  /** OpenSSL must be given the length first, and all bytes in one call */
  bool ccm;
};

/** Null for a suite that cannot be continued: one without AEAD, or an unknown one. */
const TlsAead *tlsAeadOf(int version, uint16_t cipher);

/** Owns its bytes: wiped at the end. */
struct TlsKey {
  uint8_t key[kTlsKeyMost];
  /** TLS 1.2 with GCM and CCM: only the first four bytes, the rest of the nonce is in the record */
  uint8_t iv[kTlsNonceSize];
  ~TlsKey();
};

/** TLS 1.3 (RFC 8446, 7.3). False when OpenSSL fails. */
bool tlsTrafficKey(const TlsAead *aead, const uint8_t *secret, size_t length, TlsKey *key);
/** TLS 1.3: the traffic secret after a key update (RFC 8446, 7.2), in place. */
bool tlsNextSecret(const TlsAead *aead, uint8_t *secret, size_t length);
/** TLS 1.2 (RFC 5246, 6.3): the key of one direction. */
bool tlsBlockKey(const TlsAead *aead, const TlsSession &session, bool ofServer, TlsKey *key);

}  // namespace tsb
