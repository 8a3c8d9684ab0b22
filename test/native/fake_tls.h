#pragma once

#include <string>

#include "tls/tls.h"

namespace tsb {

TlsConn *fakeTlsNew();
std::string fakeTlsRecord(const std::string &bytes);

}  // namespace tsb
