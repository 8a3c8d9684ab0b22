/* Socket address conversion, see address.h. */
#include "address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <cstddef>
#include <cstring>

namespace tsb {

static int unixAddress(const std::string &path, Address *out) {
  sockaddr_un *un = reinterpret_cast<sockaddr_un *>(&out->storage);
  const bool abstract = !path.empty() && path[0] == '@';
  // an abstract name has a length instead of an end mark, so it may use the last byte too
  const size_t most = abstract ? sizeof(un->sun_path) : sizeof(un->sun_path) - 1;
  if (path.empty()) return -EINVAL;
  if (path.size() > most) return -ENAMETOOLONG;
  un->sun_family = AF_UNIX;
  memcpy(un->sun_path, path.data(), path.size());
  out->length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
  if (abstract)
    un->sun_path[0] = '\0';
  else
    out->length += 1;
  return 0;
}

static int inet6Address(const std::string &host, int port, Address *out) {
  sockaddr_in6 *in6 = reinterpret_cast<sockaddr_in6 *>(&out->storage);
  if (host.find('%') == std::string::npos) {
    if (inet_pton(AF_INET6, host.c_str(), &in6->sin6_addr) != 1) return -EINVAL;
    in6->sin6_family = AF_INET6;
  } else {
    // link-local addresses name their interface; only getaddrinfo understands every form of that
    addrinfo hints = {};
    addrinfo *found = nullptr;
    hints.ai_family = AF_INET6;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICHOST;
    if (getaddrinfo(host.c_str(), nullptr, &hints, &found) != 0) return -EINVAL;
    memcpy(in6, found->ai_addr, sizeof(*in6));
    freeaddrinfo(found);
  }
  in6->sin6_port = htons(static_cast<uint16_t>(port));
  out->length = sizeof(*in6);
  return 0;
}

int toAddress(int family, const std::string &host, int port, Address *out) {
  memset(&out->storage, 0, sizeof(out->storage));
  if (family != kUnix && (port < 0 || port > 65535)) return -EINVAL;
  switch (family) {
    case kUnix:
      return unixAddress(host, out);
    case kInet: {
      sockaddr_in *in = reinterpret_cast<sockaddr_in *>(&out->storage);
      if (inet_pton(AF_INET, host.c_str(), &in->sin_addr) != 1) return -EINVAL;
      in->sin_family = AF_INET;
      in->sin_port = htons(static_cast<uint16_t>(port));
      out->length = sizeof(*in);
      return 0;
    }
    case kInet6:
      return inet6Address(host, port, out);
    default:
      return -EINVAL;
  }
}

static std::string unixPath(const sockaddr_un *un, socklen_t length) {
  const size_t start = offsetof(sockaddr_un, sun_path);
  if (length <= start) return std::string();
  const size_t bytes = length - start;
  if (un->sun_path[0] == '\0') return "@" + std::string(un->sun_path + 1, bytes - 1);
  return std::string(un->sun_path, strnlen(un->sun_path, bytes));
}

AddressText fromSockaddr(const sockaddr *sa, socklen_t length) {
  char host[NI_MAXHOST];
  if (sa->sa_family == AF_UNIX) return {kUnix, unixPath(reinterpret_cast<const sockaddr_un *>(sa), length), 0};
  if (sa->sa_family != AF_INET && sa->sa_family != AF_INET6) return {0, std::string(), 0};
  if (getnameinfo(sa, length, host, sizeof(host), nullptr, 0, NI_NUMERICHOST) != 0) host[0] = '\0';
  if (sa->sa_family == AF_INET)
    return {kInet, host, ntohs(reinterpret_cast<const sockaddr_in *>(sa)->sin_port)};
  return {kInet6, host, ntohs(reinterpret_cast<const sockaddr_in6 *>(sa)->sin6_port)};
}

}  // namespace tsb
