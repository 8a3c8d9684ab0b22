/*
 * Converts socket addresses between the three fields that TypeScript uses (family, host, port) and the kernel's form. Hosts
 * are numeric: no name is looked up here.
 */
#pragma once

#include <sys/socket.h>

#include <string>

namespace tsb {

/** Same numbers as Family in src/core/base/native.ts. */
enum Family { kUnix = 1, kInet = 4, kInet6 = 6 };

struct Address {
  sockaddr_storage storage;
  socklen_t length;
  const sockaddr *sa() const { return reinterpret_cast<const sockaddr *>(&storage); }
};

/** Returns 0; -EINVAL (not numeric, or unknown family), -ENAMETOOLONG (Unix path). */
int toAddress(int family, const std::string &host, int port, Address *out);

struct AddressText {
  int family;
  std::string host;
  int port;
};

/** The reverse. Unnamed Unix sockets give an empty host; other families than the three give family 0. */
AddressText fromSockaddr(const sockaddr *sa, socklen_t length);

}  // namespace tsb
