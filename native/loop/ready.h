/* What backends do by system calls when the kernel says that a descriptor is ready. */
#pragma once

#include "loop/stream.h"

namespace tsb {

/** Sends what is unsent, as far as the socket takes it. */
void readySend(Stream *s);
/** A connecting socket is writable or broken: reports the result. */
void readyConnect(Stream *s);
/** Accepts and reports connections, at most kAcceptMax. */
void readyAccept(Stream *s);

}  // namespace tsb
