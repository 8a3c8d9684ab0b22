/* Name lookups of the libuv backend: getaddrinfo on libuv's thread pool, reported as one more record of the loop. */
#include <netdb.h>
#include <sys/socket.h>

#include <climits>
#include <new>

#include "loop/stream.h"

namespace tsb {

/* libuv renumbers the EAI_ codes; TypeScript wants the system's, for gai_strerror. */
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
  lookup->loop->lookups.erase(lookup->id);
  if (lookup->found) uv_freeaddrinfo(lookup->found);
  delete lookup;
}

static void report(Lookup *lookup, int status) {
  int result = 0;
  if (status < 0)
    result = systemCode(status);
  else
    for (const addrinfo *a = lookup->found; a; a = a->ai_next)
      if (a->ai_family == AF_INET || a->ai_family == AF_INET6) result++;
  lookup->loop->turn->add(kResolved, lookup->id, result, 0);
}

static void onFound(uv_getaddrinfo_t *request, int status, addrinfo *found) {
  Lookup *lookup = static_cast<Lookup *>(request->data);
  lookup->running = false;
  lookup->found = found;
  if (lookup->cancelled)
    release(lookup);
  else
    report(lookup, status);
}

int lookupStart(Loop *loop, const char *name) {
  UvLoop *l = uvLoop(loop);
  if (l->lookups.size() >= kLookupsMax) return -EAGAIN;
  Lookup *lookup = new (std::nothrow) Lookup();
  if (!lookup) return -ENOMEM;
  do l->lastLookup = l->lastLookup == INT_MAX ? 1 : l->lastLookup + 1;
  while (l->lookups.count(l->lastLookup) > 0);
  lookup->loop = l;
  lookup->id = l->lastLookup;
  lookup->request.data = lookup;
  l->lookups[lookup->id] = lookup;
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  const int err = uv_getaddrinfo(&l->uv, &lookup->request, onFound, name, nullptr, &hints);
  lookup->running = err == 0;
  // not into the ring: that one belongs to the turn being handled
  if (err < 0) l->turn->late.push_back({kResolved, lookup->id, systemCode(err), 0});
  return lookup->id;
}

const addrinfo *lookupFound(Loop *loop, int id) {
  UvLoop *l = uvLoop(loop);
  const auto entry = l->lookups.find(id);
  if (entry == l->lookups.end() || entry->second->running) return nullptr;
  return entry->second->found;
}

void lookupEnd(Loop *loop, int id) {
  UvLoop *l = uvLoop(loop);
  const auto entry = l->lookups.find(id);
  if (entry == l->lookups.end()) return;
  Lookup *lookup = entry->second;
  if (!lookup->running) {
    release(lookup);
    return;
  }
  // the callback comes in any case, and frees it
  lookup->cancelled = true;
  uv_cancel(reinterpret_cast<uv_req_t *>(&lookup->request));
}

}  // namespace tsb
