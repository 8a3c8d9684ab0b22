/*
 * What libuv does for the loop, whichever backend moves the bytes: signals, and name lookups on its thread pool. It is a
 * private uv_loop_t, because Node's own loop never turns again once the program's loop has begun; the backend watches its
 * descriptor like any other.
 */
#pragma once

#include "loop/stream.h"

struct addrinfo;

namespace tsb {

struct UvSide;

/** Returns null with *err = -errno. */
UvSide *uvSideNew(Streams *streams, int *err);
/** Before streamsEnd. */
void uvSideEnd(UvSide *uv);

/** Reports a signal from now on, over whatever handler there was. Returns 0 or -errno. */
int signalStart(UvSide *uv, int signum);

/** Returns a request id > 0, or -errno. A name that cannot even be looked up is reported as a record too. */
int lookupStart(UvSide *uv, const char *name);
/** The addresses of a finished request, or null. They are valid until lookupEnd. */
const addrinfo *lookupFound(UvSide *uv, int id);
/** Forgets a request, finished or not. */
void lookupEnd(UvSide *uv, int id);

}  // namespace tsb
