/*
 * TLS for JavaScript: contexts by small numbers, TLS on a handle, and the peer's certificate. Nothing here is on the hot
 * path, because bytes are received and sent as on any handle.
 */
#include <errno.h>
#include <openssl/crypto.h>
#include <string.h>

#include "addon.h"

namespace tsb {

static std::string optionString(const Napi::Object &options, const char *name) {
  return byteString(options.Env(), options.Get(name));
}

static int optionInt(const Napi::Object &options, const char *name) {
  int32_t value = 0;
  napi_get_value_int32(options.Env(), options.Get(name), &value);
  return value;
}

static Napi::Value tlsCtxNew(const Napi::CallbackInfo &info) {
  State *state = stateOf(info);
  Napi::Env env = info.Env();
  if (!info[1].IsObject()) {
    Napi::TypeError::New(env, "tlsCtxNew: options expected").ThrowAsJavaScriptException();
    return env.Undefined();
  }
  const Napi::Object given = info[1].As<Napi::Object>();
  TlsOptions options;
  options.server = argInt(info, 0) == 1;
  options.protocols = optionInt(given, "protocols");
  options.verify = static_cast<TlsVerify>(optionInt(given, "verify"));
  options.dhAuto = optionInt(given, "dhAuto") != 0;
  options.ciphers = optionString(given, "ciphers");
  options.ciphers13 = optionString(given, "ciphers13");
  options.curve = optionString(given, "curve");
  options.keyFile = optionString(given, "keyFile");
  options.certFile = optionString(given, "certFile");
  options.caFile = optionString(given, "caFile");

  std::string error = "no memory";
  TlsContext *context = tlsContextNew(options, &error);
  if (!context) {
    // Napi::Error would read the message as UTF-8; it is a byte string
    napi_value object;
    napi_create_error(env, nullptr, toString(env, error), &object);
    napi_throw(env, object);
    return env.Undefined();
  }
  std::vector<TlsContext *> &contexts = state->tlsContexts;
  if (contexts.empty()) contexts.push_back(nullptr);
  for (size_t id = 1; id < contexts.size(); id++) {
    if (contexts[id]) continue;
    contexts[id] = context;
    return toInt(env, static_cast<int>(id));
  }
  contexts.push_back(context);
  return toInt(env, static_cast<int>(contexts.size() - 1));
}

static TlsContext *contextOf(State *state, int id) {
  return id > 0 && static_cast<size_t>(id) < state->tlsContexts.size() ? state->tlsContexts[id] : nullptr;
}

static Napi::Value tlsCtxFree(const Napi::CallbackInfo &info) {
  State *state = stateOf(info);
  const int id = argInt(info, 0);
  TlsContext *context = contextOf(state, id);
  if (context) state->tlsContexts[id] = nullptr;
  tlsContextFree(context);
  return info.Env().Undefined();
}

static Napi::Value tlsKnown(const Napi::CallbackInfo &info) {
  const std::string value = argBytes(info, 1);
  const bool known = argBytes(info, 0) == "curve" ? tlsCurveKnown(value) : tlsCiphersKnown(value);
  return Napi::Boolean::New(info.Env(), known);
}

static Napi::Value suitesThatStay(const Napi::CallbackInfo &info) {
  const std::vector<std::string> names = tlsSuitesThatStay(argBytes(info, 0));
  Napi::Array list = Napi::Array::New(info.Env(), names.size());
  for (size_t i = 0; i < names.size(); i++) list.Set(static_cast<uint32_t>(i), toString(info.Env(), names[i]));
  return list;
}

static int start(State *state, int handle, int id, bool server, const std::string &host, const uint8_t *bytes,
                 size_t length) {
  const TlsContext *context = contextOf(state, id);
  if (!state->streams) return -EBADF;
  if (!context || context->server != server) return -EINVAL;
  if (context->verify == TlsVerify::kName && host.empty()) return -EINVAL;
  if (!state->tlsBio) state->tlsBio = tlsBioMethod();
  TlsConn *conn = state->tlsBio ? tlsConnNew(context, state->tlsBio, host) : nullptr;
  return conn ? streamTlsStart(state->streams, handle, conn, bytes, length) : -ENOMEM;
}

static Napi::Value tlsAccept(const Napi::CallbackInfo &info) {
  State *state = stateOf(info);
  const int offset = argInt(info, 2, 0);
  const int length = argInt(info, 3, 0);
  if (!state->turn.inArena(offset, length)) return toInt(info.Env(), -EFAULT);
  return toInt(info.Env(), start(state, argInt(info, 0), argInt(info, 1), true, std::string(), state->turn.arena + offset,
                                 static_cast<size_t>(length)));
}

static Napi::Value tlsConnect(const Napi::CallbackInfo &info) {
  const std::string host = argBytes(info, 2);
  return toInt(info.Env(), start(stateOf(info), argInt(info, 0), argInt(info, 1), false, host, nullptr, 0));
}

static TlsConn *connOf(const Napi::CallbackInfo &info) {
  Streams *streams = stateOf(info)->streams;
  return streams ? streamTls(streams, argInt(info, 0)) : nullptr;
}

static Napi::Value tlsError(const Napi::CallbackInfo &info) {
  const TlsConn *conn = connOf(info);
  return toString(info.Env(), conn ? conn->error : std::string());
}

/** As TlsInfo in src/core/base/native.ts. */
static Napi::Value tlsInfo(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const TlsConn *conn = connOf(info);
  if (!conn) return env.Null();
  const TlsInfo known = tlsInfoOf(conn);
  Napi::Object object = Napi::Object::New(env);
  object.Set("version", toString(env, known.version));
  object.Set("cipher", toString(env, known.cipher));
  object.Set("exchange", toString(env, known.exchange));
  object.Set("recordsRead", Napi::Number::New(env, static_cast<double>(conn->session.recordsRead)));
  object.Set("recordsWritten", Napi::Number::New(env, static_cast<double>(conn->session.recordsWritten)));
  object.Set("keyUpdatesRead", toInt(env, static_cast<int>(conn->session.keyUpdatesRead)));
  object.Set("keyUpdatesWritten", toInt(env, static_cast<int>(conn->session.keyUpdatesWritten)));
  object.Set("secretBytes", toInt(env, static_cast<int>(conn->session.secretLength + conn->session.masterLength)));
  return object;
}

static Napi::Value peerCertProvided(const Napi::CallbackInfo &info) {
  const TlsConn *conn = connOf(info);
  return Napi::Boolean::New(info.Env(), conn && tlsPeerCertProvided(conn));
}

static Napi::Value peerCertSubject(const Napi::CallbackInfo &info) {
  const TlsConn *conn = connOf(info);
  if (!conn || !tlsPeerCertProvided(conn)) return info.Env().Null();
  return toString(info.Env(), tlsPeerCertSubject(conn));
}

static Napi::Value peerCertContainsName(const Napi::CallbackInfo &info) {
  TlsConn *conn = connOf(info);
  return Napi::Boolean::New(info.Env(), conn && tlsPeerCertProvided(conn) && tlsPeerCertContainsName(conn, argBytes(info, 1)));
}

static Napi::Value certHash(const Napi::CallbackInfo &info) {
  const TlsConn *conn = connOf(info);
  return toString(info.Env(), conn ? tlsCertHash(conn, argInt(info, 1) == 1) : std::string());
}

/* ---- handover ---- */

static Napi::Value refusal(const Napi::CallbackInfo &info) {
  const TlsConn *conn = connOf(info);
  const char *why = conn ? tlsRefusal(conn) : "handshake under way";
  return why ? toString(info.Env(), why) : info.Env().Null();
}

static Napi::Value lastingRefusal(const Napi::CallbackInfo &info) {
  const TlsConn *conn = connOf(info);
  const char *why = conn ? tlsLastingRefusal(conn) : nullptr;
  return why ? toString(info.Env(), why) : info.Env().Null();
}

/* The bytes are secrets: JavaScript wipes them when it has sent them. */
static Napi::Value exportConn(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const TlsConn *conn = connOf(info);
  if (!conn || tlsRefusal(conn)) return env.Null();
  std::vector<uint8_t> bytes = tlsExport(conn);
  Napi::Uint8Array array = Napi::Uint8Array::New(env, bytes.size());
  memcpy(array.Data(), bytes.data(), bytes.size());
  OPENSSL_cleanse(bytes.data(), bytes.size());
  return array;
}

static Napi::Value continueConn(const Napi::CallbackInfo &info) {
  Streams *streams = stateOf(info)->streams;
  uint8_t *bytes;
  size_t length;
  if (!streams) return toInt(info.Env(), -EBADF);
  if (!bytesOf(info.Env(), info[1], &bytes, &length)) return toInt(info.Env(), -EFAULT);
  int err;
  TlsConn *conn = tlsImport(bytes, length, &err);
  return toInt(info.Env(), conn ? streamTlsContinue(streams, argInt(info, 0), conn) : err);
}

static Napi::Value freeze(const Napi::CallbackInfo &info) {
  TlsConn *conn = connOf(info);
  if (conn) conn->frozen = argInt(info, 1) == 1;
  return info.Env().Undefined();
}

/* One call for all, because clients wait meanwhile. */
static Napi::Value freezeAll(const Napi::CallbackInfo &info) {
  Streams *streams = stateOf(info)->streams;
  Napi::Array refused = Napi::Array::New(info.Env());
  if (!streams) return refused;
  uint32_t n = 0;
  for (const int handle : streamsTlsFreeze(streams, argInt(info, 0))) refused.Set(n++, toInt(info.Env(), handle));
  return refused;
}

static Napi::Value thawAll(const Napi::CallbackInfo &info) {
  if (stateOf(info)->streams) streamsTlsThaw(stateOf(info)->streams);
  return info.Env().Undefined();
}

static Napi::Value traffic(const Napi::CallbackInfo &info) {
  const TlsConn *conn = connOf(info);
  return Napi::Number::New(info.Env(), conn ? static_cast<double>(conn->traffic) : -1);
}

static Napi::Value sendRecords(const Napi::CallbackInfo &info) {
  Streams *streams = stateOf(info)->streams;
  uint8_t *bytes;
  size_t length;
  if (!streams) return toInt(info.Env(), -EBADF);
  if (!bytesOf(info.Env(), info[1], &bytes, &length)) return toInt(info.Env(), -EFAULT);
  return toInt(info.Env(), streamSendRecords(streams, argInt(info, 0), bytes, length));
}

void tlsEnd(State *state) {
  for (TlsContext *context : state->tlsContexts) tlsContextFree(context);
  state->tlsContexts.clear();
  BIO_meth_free(state->tlsBio);
  state->tlsBio = nullptr;
}

void bindTls(Napi::Env env, Napi::Object exports, State *state) {
  exports.Set("tlsCtxNew", Napi::Function::New<tlsCtxNew>(env, "tlsCtxNew", state));
  exports.Set("tlsCtxFree", Napi::Function::New<tlsCtxFree>(env, "tlsCtxFree", state));
  exports.Set("tlsKnown", Napi::Function::New<tlsKnown>(env, "tlsKnown", state));
  exports.Set("tlsSuitesThatStay", Napi::Function::New<suitesThatStay>(env, "tlsSuitesThatStay", state));
  exports.Set("tlsAccept", Napi::Function::New<tlsAccept>(env, "tlsAccept", state));
  exports.Set("tlsConnect", Napi::Function::New<tlsConnect>(env, "tlsConnect", state));
  exports.Set("tlsError", Napi::Function::New<tlsError>(env, "tlsError", state));
  exports.Set("tlsInfo", Napi::Function::New<tlsInfo>(env, "tlsInfo", state));
  exports.Set("tlsPeerCertProvided", Napi::Function::New<peerCertProvided>(env, "tlsPeerCertProvided", state));
  exports.Set("tlsPeerCertSubject", Napi::Function::New<peerCertSubject>(env, "tlsPeerCertSubject", state));
  exports.Set("tlsCertHash", Napi::Function::New<certHash>(env, "tlsCertHash", state));
  exports.Set("tlsRefusal", Napi::Function::New<refusal>(env, "tlsRefusal", state));
  exports.Set("tlsLastingRefusal", Napi::Function::New<lastingRefusal>(env, "tlsLastingRefusal", state));
  exports.Set("tlsExport", Napi::Function::New<exportConn>(env, "tlsExport", state));
  exports.Set("tlsContinue", Napi::Function::New<continueConn>(env, "tlsContinue", state));
  exports.Set("tlsFreeze", Napi::Function::New<freeze>(env, "tlsFreeze", state));
  exports.Set("tlsFreezeAll", Napi::Function::New<freezeAll>(env, "tlsFreezeAll", state));
  exports.Set("tlsThawAll", Napi::Function::New<thawAll>(env, "tlsThawAll", state));
  exports.Set("tlsTraffic", Napi::Function::New<traffic>(env, "tlsTraffic", state));
  exports.Set("sendRecords", Napi::Function::New<sendRecords>(env, "sendRecords", state));
  exports.Set("tlsPeerCertContainsName",
              Napi::Function::New<peerCertContainsName>(env, "tlsPeerCertContainsName", state));
}

}  // namespace tsb
