/* PAM for JavaScript. */
#include <errno.h>

#include "addon.h"
#include "pam/pam.h"

namespace tsb {

static Napi::Value open(const Napi::CallbackInfo &info) {
  State *state = stateOf(info);
  if (state->pam) return toString(info.Env(), std::string());
  if (!state->streams) return toString(info.Env(), "no loop yet");
  return toString(info.Env(), pamOpen(state->streams->loop->wakeFd, &state->pam));
}

static Napi::Value submit(const Napi::CallbackInfo &info) {
  State *state = stateOf(info);
  if (!state->pam) return toInt(info.Env(), -ENOSYS);
  PamLogin login = {argInt(info, 0), argBytes(info, 1), argBytes(info, 2), argBytes(info, 3)};
  const int err = pamSubmit(state->pam, login);
  pamWipe(&login.password);
  return toInt(info.Env(), err);
}

static Napi::Value messages(const Napi::CallbackInfo &info) {
  Pam *pam = stateOf(info)->pam;
  Napi::Array list = Napi::Array::New(info.Env());
  if (!pam) return list;
  for (const std::string &message : pamMessages(pam, argInt(info, 0)))
    list.Set(list.Length(), toString(info.Env(), message));
  return list;
}

void bindPam(Napi::Env env, Napi::Object exports, State *state) {
  exports.Set("pamOpen", Napi::Function::New<open>(env, "pamOpen", state));
  exports.Set("pamSubmit", Napi::Function::New<submit>(env, "pamSubmit", state));
  exports.Set("pamMessages", Napi::Function::New<messages>(env, "pamMessages", state));
}

}  // namespace tsb
