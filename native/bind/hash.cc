/*
 * SHA-256 for SCRAM, of the OpenSSL that is built into Node. Node's own functions make a stream object for every hash, which
 * takes several times as long as the hash.
 */
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/params.h>

#include <memory>

#include "addon.h"

namespace tsb {

constexpr size_t kDigestSize = 32;

/* Looked up once: each of OpenSSL's look-ups costs more than the hash of a short text. */

static const EVP_MD *sha256Method() {
  static const EVP_MD *const method = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  return method;
}

struct FreeMac {
  void operator()(EVP_MAC_CTX *context) const { EVP_MAC_CTX_free(context); }
};

static EVP_MAC_CTX *newHmac() {
  EVP_MAC *method = EVP_MAC_fetch(nullptr, "HMAC", nullptr);
  if (!method) return nullptr;
  EVP_MAC_CTX *context = EVP_MAC_CTX_new(method);
  EVP_MAC_free(method);
  char digest[] = "SHA256";
  const OSSL_PARAM params[] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0),
                               OSSL_PARAM_construct_end()};
  if (context) EVP_MAC_CTX_set_params(context, params);
  return context;
}

/** HMAC with SHA-256, of this thread; null if OpenSSL cannot make it. */
static EVP_MAC_CTX *hmacOfThread() {
  thread_local std::unique_ptr<EVP_MAC_CTX, FreeMac> context(newHmac());
  return context.get();
}

/** The bytes of two arguments, the last one of which has room for a digest. */
struct KeyAndDigest {
  uint8_t *key;
  size_t length;
  uint8_t *digest;
};

static bool readArguments(const Napi::CallbackInfo &info, size_t digestAt, KeyAndDigest *into) {
  size_t room = 0;
  return bytesOf(info.Env(), info[0], &into->key, &into->length) &&
         bytesOf(info.Env(), info[digestAt], &into->digest, &room) && room >= kDigestSize;
}

static Napi::Value sha256(const Napi::CallbackInfo &info) {
  KeyAndDigest a;
  const bool done = readArguments(info, 1, &a) &&
                    EVP_Digest(a.key, a.length, a.digest, nullptr, sha256Method(), nullptr) == 1;
  return Napi::Boolean::New(info.Env(), done);
}

static Napi::Value hmacSha256(const Napi::CallbackInfo &info) {
  KeyAndDigest a;
  if (!readArguments(info, 2, &a)) return Napi::Boolean::New(info.Env(), false);
  const std::string text = argBytes(info, 1);
  const uint8_t *bytes = reinterpret_cast<const uint8_t *>(text.data());
  EVP_MAC_CTX *context = hmacOfThread();
  // without a key, OpenSSL would take that of the last call
  const uint8_t *key = a.length > 0 ? a.key : reinterpret_cast<const uint8_t *>("");
  const bool done = context && EVP_MAC_init(context, key, a.length, nullptr) == 1 &&
                    EVP_MAC_update(context, bytes, text.size()) == 1 &&
                    EVP_MAC_final(context, a.digest, nullptr, kDigestSize) == 1;
  return Napi::Boolean::New(info.Env(), done);
}

void bindHash(Napi::Env env, Napi::Object exports, State *state) {
  exports.Set("sha256", Napi::Function::New<sha256>(env, "sha256", state));
  exports.Set("hmacSha256", Napi::Function::New<hmacSha256>(env, "hmacSha256", state));
}

}  // namespace tsb
