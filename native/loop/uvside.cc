/* Signals and name lookups, see uvside.h. */
#include "loop/uvside.h"

#include <netdb.h>
#include <sys/socket.h>
#include <uv.h>

#include <climits>
#include <new>
#include <unordered_map>
#include <vector>

namespace tsb {

constexpr int kSignalsMax = 65;

struct Lookup {
  uv_getaddrinfo_t request;
  UvSide *uv;
  int id;
  addrinfo *found;
  bool running;
  bool cancelled;
};

struct UvSide {
  uv_loop_t loop;
  /** never sent: it keeps libuv's loop alive, so that its set is registered with the kernel before the first lookup */
  uv_async_t alive;
  Turn *turn;
  /** the backend's watch of libuv's descriptor */
  Stream watch;
  uv_signal_t *signals[kSignalsMax];
  /** libuv runs between two turns: the ring is being read, and gets no more records */
  bool between;
  std::unordered_map<int, Lookup *> lookups;
  int lastLookup;
};

/* ---- life ---- */

static void runPending(void *context) { uv_run(&static_cast<UvSide *>(context)->loop, UV_RUN_NOWAIT); }

static void report(const UvSide *uv, Kind kind, int handle, int result) {
  if (uv->between)
    uv->turn->addForNext(kind, handle, result);
  else
    uv->turn->add(kind, handle, result, 0);
}

UvSide *uvSideNew(Streams *streams, int *err) {
  *err = -ENOMEM;
  UvSide *uv = new (std::nothrow) UvSide();
  if (!uv) return nullptr;
  *err = uv_loop_init(&uv->loop);
  if (*err < 0) {
    delete uv;
    return nullptr;
  }
  uv->turn = streams->turn;
  uv_async_init(&uv->loop, &uv->alive, nullptr);
  *err = watchOwn(streams, &uv->watch, uv_backend_fd(&uv->loop), runPending, uv);
  if (*err < 0) {
    uvSideEnd(uv);
    return nullptr;
  }
  runPending(uv);
  return uv;
}

static void onSignalClosed(uv_handle_t *handle) { delete reinterpret_cast<uv_signal_t *>(handle); }

void uvSideEnd(UvSide *uv) {
  if (!uv) return;
  unwatchOwn(&uv->watch);
  for (uv_signal_t *signal : uv->signals)
    if (signal) uv_close(reinterpret_cast<uv_handle_t *>(signal), onSignalClosed);
  uv_close(reinterpret_cast<uv_handle_t *>(&uv->alive), nullptr);
  std::vector<int> ids;
  for (const auto &entry : uv->lookups) ids.push_back(entry.first);
  for (const int id : ids) lookupEnd(uv, id);
  runPending(uv);
  runPending(uv);
  // A lookup that a pool thread is still busy with writes into this memory later. Leaving the memory to the end of the
  // process is better than waiting for a name server here.
  if (uv_loop_close(&uv->loop) == 0) delete uv;
}

/* ---- signals ---- */

static void onSignal(uv_signal_t *signal, int signum) {
  report(static_cast<UvSide *>(signal->data), kSignal, signum, 0);
}

/* libuv installs its handler over whatever Node had, the inspector's SIGUSR1 included. */
int signalStart(UvSide *uv, int signum) {
  if (signum <= 0 || signum >= kSignalsMax) return -EINVAL;
  if (uv->signals[signum]) return 0;
  uv_signal_t *signal = new (std::nothrow) uv_signal_t();
  if (!signal) return -ENOMEM;
  int err = uv_signal_init(&uv->loop, signal);
  if (err < 0) {
    delete signal;
    return err;
  }
  signal->data = uv;
  err = uv_signal_start(signal, onSignal, signum);
  if (err < 0) {
    uv_close(reinterpret_cast<uv_handle_t *>(signal), onSignalClosed);
    return err;
  }
  uv->signals[signum] = signal;
  // libuv tells the kernel only when its loop turns
  uv->between = true;
  runPending(uv);
  uv->between = false;
  return 0;
}

/* ---- name lookups ---- */

/* libuv renumbers the EAI_ codes, but gai_strerror needs the system's. */
static int systemCode(int uvStatus) {
  switch (uvStatus) {
    case UV_EAI_AGAIN:
      return EAI_AGAIN;
    case UV_EAI_BADFLAGS:
      return EAI_BADFLAGS;
    case UV_EAI_FAIL:
      return EAI_FAIL;
    case UV_EAI_FAMILY:
      return EAI_FAMILY;
    case UV_EAI_MEMORY:
    case UV_ENOMEM:
      return EAI_MEMORY;
#ifdef EAI_ADDRFAMILY
    case UV_EAI_ADDRFAMILY:
      return EAI_ADDRFAMILY;
#endif
#ifdef EAI_NODATA
    case UV_EAI_NODATA:
      return EAI_NODATA;
#endif
    case UV_EAI_OVERFLOW:
      return EAI_OVERFLOW;
    case UV_EAI_SERVICE:
      return EAI_SERVICE;
    case UV_EAI_SOCKTYPE:
      return EAI_SOCKTYPE;
    case UV_EAI_NONAME:
    case UV_EINVAL:        // names that libuv refuses to ask for: empty,
    case UV_ENAMETOOLONG:  // too long,
    case UV_E2BIG:
      return EAI_NONAME;
    default:
      return EAI_SYSTEM;
  }
}

static void release(Lookup *lookup) {
  lookup->uv->lookups.erase(lookup->id);
  if (lookup->found) uv_freeaddrinfo(lookup->found);
  delete lookup;
}

static int usableAddresses(const addrinfo *found) {
  int count = 0;
  for (const addrinfo *a = found; a; a = a->ai_next)
    if (a->ai_family == AF_INET || a->ai_family == AF_INET6) count++;
  return count;
}

static void onFound(uv_getaddrinfo_t *request, int status, addrinfo *found) {
  Lookup *lookup = static_cast<Lookup *>(request->data);
  lookup->running = false;
  lookup->found = found;
  if (lookup->cancelled)
    release(lookup);
  else
    report(lookup->uv, kResolved, lookup->id, status < 0 ? systemCode(status) : usableAddresses(found));
}

int lookupStart(UvSide *uv, const char *name) {
  if (uv->lookups.size() >= kLookupsMax) return -EAGAIN;
  Lookup *lookup = new (std::nothrow) Lookup();
  if (!lookup) return -ENOMEM;
  do uv->lastLookup = uv->lastLookup == INT_MAX ? 1 : uv->lastLookup + 1;
  while (uv->lookups.count(uv->lastLookup) > 0);
  lookup->uv = uv;
  lookup->id = uv->lastLookup;
  lookup->request.data = lookup;
  uv->lookups[lookup->id] = lookup;
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  const int err = uv_getaddrinfo(&uv->loop, &lookup->request, onFound, name, nullptr, &hints);
  lookup->running = err == 0;
  if (err < 0) uv->turn->addForNext(kResolved, lookup->id, systemCode(err));
  return lookup->id;
}

const addrinfo *lookupFound(UvSide *uv, int id) {
  const auto entry = uv->lookups.find(id);
  if (entry == uv->lookups.end() || entry->second->running) return nullptr;
  return entry->second->found;
}

void lookupEnd(UvSide *uv, int id) {
  const auto entry = uv->lookups.find(id);
  if (entry == uv->lookups.end()) return;
  Lookup *lookup = entry->second;
  if (!lookup->running) {
    release(lookup);
    return;
  }
  // onFound is called in any case, and releases it
  lookup->cancelled = true;
  uv_cancel(reinterpret_cast<uv_req_t *>(&lookup->request));
}

}  // namespace tsb
