/*
 * The loop's functions for JavaScript. Those of the hot path are raw Node-API callbacks that take integers and return an
 * integer: several run for every packet, and an argument wrapper would cost more than the work.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <uv.h>

#include "addon.h"
#include "address.h"
#include "pam/pam.h"

namespace tsb {

/* ---- hot: integers in, one integer out ---- */

/** Reads N integers and returns the state. An argument that is not a number becomes -1, which no call accepts. */
template <size_t N>
static inline State *readInts(napi_env env, napi_callback_info info, int32_t (&ints)[N]) {
  napi_value args[N];
  size_t count = N;
  void *data = nullptr;
  napi_get_cb_info(env, info, &count, args, nullptr, &data);
  for (size_t i = 0; i < N; i++)
    if (napi_get_value_int32(env, args[i], &ints[i]) != napi_ok) ints[i] = -1;
  return static_cast<State *>(data);
}

static inline napi_value intResult(napi_env env, int32_t value) {
  napi_value result;
  napi_create_int32(env, value, &result);
  return result;
}

static napi_value wait(napi_env env, napi_callback_info info) {
  int32_t a[1];
  State *state = readInts(env, info, a);
  if (!state->streams) {
    napi_throw_error(env, nullptr, "wait() before loopInit()");
    return nullptr;
  }
  Loop *loop = state->streams->loop;
  loop->ops->wait(loop, a[0]);
  if (state->pam) pamReport(state->pam, &state->turn);
  dutyUpdate(loop, state->turn.stampClock());
  return intResult(env, state->turn.count());
}

/** For the many calls that take a handle, or a descriptor, and nothing else. */
template <int (*Call)(Streams *, int)>
static napi_value onHandle(napi_env env, napi_callback_info info) {
  int32_t a[1];
  Streams *streams = readInts(env, info, a)->streams;
  return intResult(env, streams ? Call(streams, a[0]) : -EBADF);
}

/* PostgreSQL's messages: one byte of type, and four of length, which counts itself (protocol chapter 55.2). */
static napi_value samePackets(napi_env env, napi_callback_info info) {
  constexpr int32_t kHeader = 5;
  int32_t a[3];
  const Turn &turn = readInts(env, info, a)->turn;
  const int32_t end = a[1];
  int32_t at = a[0];
  if (!turn.inArena(at, end - at)) return intResult(env, at);
  const uint8_t type = turn.arena[at];
  while (end - at >= kHeader && turn.arena[at] == type) {
    uint32_t length;
    memcpy(&length, turn.arena + at + 1, sizeof(length));
    length = ntohl(length);
    if (length < 4 || length >= static_cast<uint32_t>(a[2]) || length >= static_cast<uint32_t>(end - at)) break;
    at += static_cast<int32_t>(length) + 1;
  }
  return intResult(env, at);
}

static napi_value receiveAhead(napi_env env, napi_callback_info info) {
  int32_t a[1];
  Streams *streams = readInts(env, info, a)->streams;
  if (streams) streamReceiveAhead(streams, a[0] > 0);
  return intResult(env, 0);
}

static napi_value listenStart(napi_env env, napi_callback_info info) {
  int32_t a[2];
  Streams *streams = readInts(env, info, a)->streams;
  return intResult(env, streams ? streamListenStart(streams, a[0], a[1] > 0) : -EBADF);
}

static napi_value recvLimit(napi_env env, napi_callback_info info) {
  int32_t a[2];
  Streams *streams = readInts(env, info, a)->streams;
  return intResult(env, streams ? streamRecvLimit(streams, a[0], a[1]) : -EBADF);
}

static napi_value startSignal(napi_env env, napi_callback_info info) {
  int32_t a[1];
  UvSide *uv = readInts(env, info, a)->uv;
  return intResult(env, uv ? signalStart(uv, a[0]) : -EBADF);
}

static int sendPiece(Streams *streams, int handle, const uint8_t *bytes, size_t length) {
  return streamSend(streams, handle, bytes, length, Origin::kArena);
}

/** send and keep: a handle and a piece of the arena. */
template <int (*Call)(Streams *, int, const uint8_t *, size_t)>
static napi_value onPiece(napi_env env, napi_callback_info info) {
  int32_t a[3];
  State *state = readInts(env, info, a);
  if (!state->streams) return intResult(env, -EBADF);
  if (!state->turn.inArena(a[1], a[2])) return intResult(env, -EFAULT);
  return intResult(env, Call(state->streams, a[0], state->turn.arena + a[1], static_cast<size_t>(a[2])));
}

static napi_value sendBytes(napi_env env, napi_callback_info info) {
  napi_value args[4];
  size_t count = 4;
  void *data = nullptr;
  int32_t handle = -1, offset = -1, length = -1;
  uint8_t *bytes;
  size_t size;
  napi_get_cb_info(env, info, &count, args, nullptr, &data);
  napi_get_value_int32(env, args[0], &handle);
  napi_get_value_int32(env, args[2], &offset);
  napi_get_value_int32(env, args[3], &length);
  Streams *streams = static_cast<State *>(data)->streams;
  if (!streams) return intResult(env, -EBADF);
  if (!bytesOf(env, args[1], &bytes, &size) || offset < 0 || length < 0 ||
      static_cast<size_t>(offset) + static_cast<size_t>(length) > size)
    return intResult(env, -EFAULT);
  return intResult(env, streamSend(streams, handle, bytes + offset, static_cast<size_t>(length), Origin::kCaller));
}

/* ---- the others ---- */

/** Makes the loop of the first backend that the kernel allows. Returns null with *err. */
static Streams *loopOf(State *state, const std::string &name, const LoopOptions &options, int *err) {
  if (name != kLoopEpoll.name) {
    Streams *streams = streamsNew(&kLoopUring, &state->turn, options, err);
    if (streams) return streams;
    state->loopRefusal = uringRefusal();
  }
  return streamsNew(&kLoopEpoll, &state->turn, options, err);
}

/** An integer argument between two bounds; the lower one if it is missing. */
static int clampedInt(const Napi::CallbackInfo &info, size_t i, int least, int most) {
  const int value = argInt(info, i, least);
  return value < least ? least : value > most ? most : value;
}

static Napi::Value loopInit(const Napi::CallbackInfo &info) {
  State *state = stateOf(info);
  const std::string name = argBytes(info, 0);
  const bool known = name == "auto" || name == kLoopUring.name || name == kLoopEpoll.name;
  if (state->streams || !known) {
    const std::string why = state->streams ? "loopInit() called twice" : "unknown loop backend: " + name;
    Napi::Error::New(info.Env(), why).ThrowAsJavaScriptException();
    return info.Env().Undefined();
  }
  LoopOptions options;
  options.recvMax = clampedInt(info, 1, kRecvMaxLeast, kRecvMaxMost);
  options.hands = clampedInt(info, 2, 0, kHandsMost);
  options.handsLoad = clampedInt(info, 3, 0, 100);
  options.handshakeThreads = clampedInt(info, 4, 0, kHandsMost);
  int err = 0;
  state->streams = loopOf(state, name, options, &err);
  if (state->streams) state->uv = uvSideNew(state->streams, &err);
  if (state->uv) return toString(info.Env(), state->streams->loop->ops->name);
  if (state->streams) streamsEnd(state->streams);
  state->streams = nullptr;
  return throwErrno(info.Env(), "loopInit", -err);
}

/** The arena with the space of the hands. */
static Napi::Value loopArena(const Napi::CallbackInfo &info) {
  const Turn &turn = stateOf(info)->turn;
  return Napi::ArrayBuffer::New(info.Env(), turn.arena, turn.arenaSize());
}

static Napi::Object threadUse(Napi::Env env, const char *kind, double turns, double cpuUsec, const Lane *lane) {
  Napi::Object use = Napi::Object::New(env);
  use.Set("kind", toString(env, kind));
  use.Set("turns", Napi::Number::New(env, turns));
  use.Set("cpuUsec", Napi::Number::New(env, cpuUsec));
  use.Set("handles", toInt(env, lane ? lane->streams : 0));
  use.Set("received", Napi::Number::New(env, lane ? static_cast<double>(lane->received) : 0));
  use.Set("sent", Napi::Number::New(env, lane ? static_cast<double>(lane->sent) : 0));
  return use;
}

/** This thread, the hands, and the threads of handshakes; as ThreadUse in src/core/base/native.ts. */
static Napi::Value loopThreads(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  Napi::Array list = Napi::Array::New(env);
  Streams *streams = stateOf(info)->streams;
  if (!streams) return list;
  const Loop *loop = streams->loop;
  uint32_t count = 0;
  list.Set(count++, threadUse(env, "main", loop->turn->number, clockUsec(CLOCK_THREAD_CPUTIME_ID), loop->lanes[0]));
  for (int i = 0; loop->hands && i < loop->hands->count(); i++) {
    const Lane *lane = loop->lanes[static_cast<size_t>(i) + 1];
    const double turns = static_cast<double>(loop->hands->jobs(i));
    list.Set(count++, threadUse(env, "io", turns, loop->hands->cpuUsec(i), lane));
  }
  if (streams->handshakes)
    for (const Handshakes::Use &use : streams->handshakes->use())
      list.Set(count++, threadUse(env, "tls", static_cast<double>(use.steps), use.cpuUsec, nullptr));
  return list;
}

static Napi::Value loopRefusal(const Napi::CallbackInfo &info) {
  return toString(info.Env(), stateOf(info)->loopRefusal);
}

static Napi::Value libuvVersion(const Napi::CallbackInfo &info) {
  return toString(info.Env(), std::string("libuv ") + uv_version_string());
}

static Napi::Value loopBreak(const Napi::CallbackInfo &info) {
  Streams *streams = stateOf(info)->streams;
  if (streams) streams->loop->breakRequested = true;
  return info.Env().Undefined();
}

static Napi::Value wakeFd(const Napi::CallbackInfo &info) {
  Streams *streams = stateOf(info)->streams;
  return toInt(info.Env(), streams ? streams->loop->wakeFd : -EBADF);
}

static Napi::Value connect(const Napi::CallbackInfo &info) {
  Streams *streams = stateOf(info)->streams;
  Address addr;
  if (!streams) return toInt(info.Env(), -EBADF);
  const int fd = argInt(info, 3, -1);
  int res = toAddress(argInt(info, 0), argBytes(info, 1), argInt(info, 2, 0), &addr);
  if (res >= 0) return toInt(info.Env(), streamConnect(streams, fd, addr.sa(), addr.length));
  if (fd >= 0) close(fd);
  return toInt(info.Env(), res);
}

/* Buffer sizes must be set before connect(), because the TCP handshake fixes the window scale. */
static Napi::Value newSocket(const Napi::CallbackInfo &info) {
  const int asked = argInt(info, 0);
  const int family = asked == kUnix ? AF_UNIX : asked == kInet6 ? AF_INET6 : AF_INET;
  const int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  return toInt(info.Env(), fd < 0 ? -errno : fd);
}

static Napi::Value listOf(Napi::Env env, const std::vector<int> &handles) {
  Napi::Array list = Napi::Array::New(env, handles.size());
  for (size_t i = 0; i < handles.size(); i++) list.Set(static_cast<uint32_t>(i), toInt(env, handles[i]));
  return list;
}

static Napi::Value recvStopAll(const Napi::CallbackInfo &info) {
  Streams *streams = stateOf(info)->streams;
  return listOf(info.Env(), streams ? streamRecvStopAll(streams, argInt(info, 0)) : std::vector<int>());
}

static Napi::Value rest(const Napi::CallbackInfo &info) {
  Streams *streams = stateOf(info)->streams;
  return toInt(info.Env(), streams ? streamRest(streams, argInt(info, 0)) : -EBADF);
}

static Napi::Value stirred(const Napi::CallbackInfo &info) {
  const Streams *streams = stateOf(info)->streams;
  return listOf(info.Env(), streams ? streamsStirred(streams) : std::vector<int>());
}

/* Otherwise the kernel releases pending operations, and with them a listening port, only after the process has ended. */
static Napi::Value loopEnd(const Napi::CallbackInfo &info) {
  Streams *streams = stateOf(info)->streams;
  if (streams) streamSendQueued(streams);
  if (streams) streams->loop->ops->quiesce(streams->loop);
  if (streams) streamsForgetFrozen(streams);
  return info.Env().Undefined();
}

/** Bytes of a handle: as many as Length says, as Copy gives them. */
template <int (*Length)(Streams *, int), int (*Copy)(Streams *, int, uint8_t *)>
static Napi::Value bytesOfHandle(const Napi::CallbackInfo &info) {
  Streams *streams = stateOf(info)->streams;
  const int handle = argInt(info, 0);
  const int length = streams ? Length(streams, handle) : 0;
  Napi::Uint8Array bytes = Napi::Uint8Array::New(info.Env(), length > 0 ? static_cast<size_t>(length) : 0);
  if (length > 0) Copy(streams, handle, bytes.Data());
  return bytes;
}

static Napi::Value keepBytes(const Napi::CallbackInfo &info) {
  Streams *streams = stateOf(info)->streams;
  uint8_t *bytes;
  size_t length;
  if (!streams) return toInt(info.Env(), -EBADF);
  if (!bytesOf(info.Env(), info[1], &bytes, &length)) return toInt(info.Env(), -EFAULT);
  return toInt(info.Env(), streamKeep(streams, argInt(info, 0), bytes, length));
}

static Napi::Value resolve(const Napi::CallbackInfo &info) {
  UvSide *uv = stateOf(info)->uv;
  return toInt(info.Env(), uv ? lookupStart(uv, argBytes(info, 0).c_str()) : -EBADF);
}

static Napi::Value resolveResult(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  UvSide *uv = stateOf(info)->uv;
  const int id = argInt(info, 0);
  Napi::Array list = Napi::Array::New(env);
  if (!uv) return list;
  uint32_t count = 0;
  for (const addrinfo *a = lookupFound(uv, id); a; a = a->ai_next)
    if (a->ai_family == AF_INET || a->ai_family == AF_INET6)
      list.Set(count++, toSockAddr(env, fromSockaddr(a->ai_addr, a->ai_addrlen)));
  lookupEnd(uv, id);
  return list;
}

static Napi::Value resolveCancel(const Napi::CallbackInfo &info) {
  UvSide *uv = stateOf(info)->uv;
  if (uv) lookupEnd(uv, argInt(info, 0));
  return info.Env().Undefined();
}

/* ---- registration ---- */

static void addRaw(Napi::Env env, Napi::Object exports, State *state, const char *name, napi_callback callback) {
  napi_value function;
  if (napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, state, &function) == napi_ok)
    exports.Set(name, function);
}

void bindLoop(Napi::Env env, Napi::Object exports, State *state) {
  addRaw(env, exports, state, "wait", wait);
  addRaw(env, exports, state, "signalStart", startSignal);
  addRaw(env, exports, state, "open", onHandle<streamOpen>);
  addRaw(env, exports, state, "openAccepted", onHandle<streamAccept>);
  addRaw(env, exports, state, "listenOpen", onHandle<streamListen>);
  addRaw(env, exports, state, "listenStart", listenStart);
  addRaw(env, exports, state, "watchFd", onHandle<streamWatch>);
  addRaw(env, exports, state, "fdOf", onHandle<streamFd>);
  addRaw(env, exports, state, "close", onHandle<streamClose>);
  addRaw(env, exports, state, "hangUp", onHandle<streamHangUp>);
  addRaw(env, exports, state, "detach", onHandle<streamDetach>);
  addRaw(env, exports, state, "recvStart", onHandle<streamRecvStart>);
  addRaw(env, exports, state, "recvStop", onHandle<streamRecvStop>);
  addRaw(env, exports, state, "ended", onHandle<streamEnded>);
  addRaw(env, exports, state, "recvLimit", recvLimit);
  addRaw(env, exports, state, "keep", onPiece<streamKeep>);
  addRaw(env, exports, state, "keptLength", onHandle<streamKeptLength>);
  addRaw(env, exports, state, "buffered", onHandle<streamBuffered>);
  addRaw(env, exports, state, "receiveAhead", receiveAhead);
  addRaw(env, exports, state, "samePackets", samePackets);
  addRaw(env, exports, state, "park", onPiece<streamPark>);
  addRaw(env, exports, state, "resume", onHandle<streamResume>);
  addRaw(env, exports, state, "recvFirst", onHandle<streamRecvFirst>);
  addRaw(env, exports, state, "send", onPiece<sendPiece>);
  addRaw(env, exports, state, "sendBytes", sendBytes);
  addRaw(env, exports, state, "unsent", onHandle<streamUnsent>);

  exports.Set("loopInit", Napi::Function::New<loopInit>(env, "loopInit", state));
  exports.Set("loopArena", Napi::Function::New<loopArena>(env, "loopArena", state));
  exports.Set("loopThreads", Napi::Function::New<loopThreads>(env, "loopThreads", state));
  exports.Set("loopRefusal", Napi::Function::New<loopRefusal>(env, "loopRefusal", state));
  exports.Set("libuvVersion", Napi::Function::New<libuvVersion>(env, "libuvVersion", state));
  exports.Set("loopBreak", Napi::Function::New<loopBreak>(env, "loopBreak", state));
  exports.Set("wakeFd", Napi::Function::New<wakeFd>(env, "wakeFd", state));
  exports.Set("socket", Napi::Function::New<newSocket>(env, "socket", state));
  exports.Set("connect", Napi::Function::New<connect>(env, "connect", state));
  exports.Set("rest", Napi::Function::New<rest>(env, "rest", state));
  exports.Set("stirred", Napi::Function::New<stirred>(env, "stirred", state));
  exports.Set("recvStopAll", Napi::Function::New<recvStopAll>(env, "recvStopAll", state));
  exports.Set("loopEnd", Napi::Function::New<loopEnd>(env, "loopEnd", state));
  exports.Set("takeUnsent", Napi::Function::New<bytesOfHandle<streamUnsent, streamTakeUnsent>>(env, "takeUnsent", state));
  exports.Set("copyKept", Napi::Function::New<bytesOfHandle<streamKeptLength, streamCopyKept>>(env, "copyKept", state));
  exports.Set("keepBytes", Napi::Function::New<keepBytes>(env, "keepBytes", state));
  exports.Set("resolve", Napi::Function::New<resolve>(env, "resolve", state));
  exports.Set("resolveResult", Napi::Function::New<resolveResult>(env, "resolveResult", state));
  exports.Set("resolveCancel", Napi::Function::New<resolveCancel>(env, "resolveCancel", state));
}

}  // namespace tsb
