#pragma once

#include <string>

#include "tls/tls.h"

namespace tsb {

TlsConn *fakeTlsNew();
std::string fakeTlsRecord(const std::string &bytes);
/** A record of so many bytes that has no data and is answered by another one, as a key update is. */
std::string fakeTlsQuestion(size_t length);

}  // namespace tsb
