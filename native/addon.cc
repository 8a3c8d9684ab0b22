/*
 * Registration: makes the state of an environment, exports the arena and the ring, and lets each binding file add its
 * functions. Only src/core/base/native.ts loads the addon.
 */
#include "addon.h"

#include <new>

#include "pam/pam.h"

namespace tsb {

static void stateEnd(napi_env, void *data, void *) {
  State *state = static_cast<State *>(data);
  pamEnd(state->pam);
  uvSideEnd(state->uv);
  if (state->streams) streamsEnd(state->streams);
  posixEnd(state);
  tlsEnd(state);
  state->turn.unmap();
  delete state;
}

static Napi::Object init(Napi::Env env, Napi::Object exports) {
  State *state = new (std::nothrow) State();
  if (!state || !state->turn.map()) {
    delete state;
    Napi::Error::New(env, "no memory for the arena").ThrowAsJavaScriptException();
    return exports;
  }
  if (napi_set_instance_data(env, state, stateEnd, nullptr) != napi_ok) return exports;
  // without finalizers: stateEnd unmaps both when the environment ends
  exports.Set("arena", Napi::ArrayBuffer::New(env, state->turn.arena, kArenaSize));
  exports.Set("ring", Napi::ArrayBuffer::New(env, state->turn.ring, kRingSize));
  bindLoop(env, exports, state);
  bindSocket(env, exports, state);
  bindPosix(env, exports, state);
  bindTls(env, exports, state);
  bindPam(env, exports, state);
  bindHash(env, exports, state);
  return exports;
}

NODE_API_MODULE(tsbouncer, init)

}  // namespace tsb
