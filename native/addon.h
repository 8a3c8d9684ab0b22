/*
 * What the binding files share: the state of one JavaScript environment, and the conversions that every function needs.
 * The main thread and each worker have an environment and a loop of their own, so nothing here is static.
 *
 * Strings are byte strings on the JavaScript side: one character is one byte, so they are passed as latin1.
 */
#pragma once

#include <napi.h>

#include <string>

#include "address.h"
#include "loop/stream.h"
#include "loop/turn.h"
#include "loop/uvside.h"
#include "tls/tls.h"

namespace tsb {

struct Pam;

struct State {
  Turn turn;
  /** both null until loopInit */
  Streams *streams;
  UvSide *uv;
  /** why io_uring is not used although it was asked for */
  std::string loopRefusal;
  /** openlog() does not copy its argument */
  std::string *syslogIdent;
  /** TLS contexts by id; index 0 stays empty */
  std::vector<TlsContext *> tlsContexts;
  /** null until the first connection */
  BIO_METHOD *tlsBio;
  /** null until pamOpen */
  Pam *pam;
};

/** Each adds its functions to the exports. The functions get `state` as callback data. */
void bindLoop(Napi::Env env, Napi::Object exports, State *state);
void bindSocket(Napi::Env env, Napi::Object exports, State *state);
void bindPosix(Napi::Env env, Napi::Object exports, State *state);
void bindTls(Napi::Env env, Napi::Object exports, State *state);
void bindHash(Napi::Env env, Napi::Object exports, State *state);
void bindPam(Napi::Env env, Napi::Object exports, State *state);
/** Closes the system log that this environment opened for the process. */
void posixEnd(State *state);
/** Frees the contexts; after streamsEnd. */
void tlsEnd(State *state);

inline State *stateOf(const Napi::CallbackInfo &info) { return static_cast<State *>(info.Data()); }

/** An integer argument, or `missing` if it is not a number. */
inline int argInt(const Napi::CallbackInfo &info, size_t i, int missing = -1) {
  int32_t value = missing;
  napi_get_value_int32(info.Env(), info[i], &value);
  return value;
}

inline std::string byteString(napi_env env, napi_value value) {
  size_t length = 0;
  if (napi_get_value_string_latin1(env, value, nullptr, 0, &length) != napi_ok) return std::string();
  std::string bytes(length, '\0');
  napi_get_value_string_latin1(env, value, &bytes[0], length + 1, &length);
  return bytes;
}

/** A string argument as bytes; empty if it is not a string. */
inline std::string argBytes(const Napi::CallbackInfo &info, size_t i) { return byteString(info.Env(), info[i]); }

inline Napi::Value toString(Napi::Env env, const std::string &bytes) {
  napi_value value;
  napi_create_string_latin1(env, bytes.data(), bytes.size(), &value);
  return Napi::Value(env, value);
}

inline Napi::Value toInt(Napi::Env env, int value) { return Napi::Number::New(env, value); }

/** As SockAddr in src/core/base/native.ts. */
inline Napi::Object toSockAddr(Napi::Env env, const AddressText &text) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("family", toInt(env, text.family));
  object.Set("host", toString(env, text.host));
  object.Set("port", toInt(env, text.port));
  return object;
}

/** Throws an Error with .syscall and .errno (positive), from which PgBouncer's log lines are made. */
inline Napi::Value throwErrno(Napi::Env env, const char *syscall, int err) {
  Napi::Error error = Napi::Error::New(env, std::string(syscall) + ": " + strerror(err));
  error.Set("syscall", syscall);
  error.Set("errno", toInt(env, err));
  error.ThrowAsJavaScriptException();
  return env.Undefined();
}

/** The bytes of a Uint8Array argument. Returns false if it is not a Uint8Array. */
inline bool bytesOf(napi_env env, napi_value value, uint8_t **bytes, size_t *length) {
  napi_typedarray_type type;
  void *data = nullptr;
  bool typed = false;
  if (napi_is_typedarray(env, value, &typed) != napi_ok || !typed) return false;
  if (napi_get_typedarray_info(env, value, &type, length, &data, nullptr, nullptr) != napi_ok) return false;
  *bytes = static_cast<uint8_t *>(data);
  return type == napi_uint8_array;
}

}  // namespace tsb
