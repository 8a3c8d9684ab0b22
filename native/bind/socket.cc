/*
 * Sockets outside the loop, for JavaScript: listening, options, names, peer credentials, descriptors over a Unix socket. All
 * calls are synchronous. Node's net module cannot be used, because it needs Node's own loop.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <vector>

#include "addon.h"

namespace tsb {

/** Descriptors in one message; the kernel's own limit is 253. */
constexpr size_t kFdsMax = 250;
/** Most descriptors that another sender may put into one message. */
constexpr size_t kFdsKernelMax = 253;

static bool setOption(int fd, int level, int name, int value) {
  return setsockopt(fd, level, name, &value, sizeof(value)) == 0;
}

/* ---- addresses ---- */

static Napi::Value getaddrinfoPassive(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string host = argBytes(info, 0);
  const std::string port = std::to_string(argInt(info, 1, 0));
  addrinfo hints = {};
  addrinfo *found = nullptr;
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  const int code = getaddrinfo(info[0].IsString() ? host.c_str() : nullptr, port.c_str(), &hints, &found);
  if (code != 0) {
    Napi::Error error = Napi::Error::New(env, gai_strerror(code));
    error.Set("syscall", "getaddrinfo");
    error.Set("code", gai_strerror(code));
    error.Set("errno", toInt(env, code));
    error.ThrowAsJavaScriptException();
    return env.Undefined();
  }
  Napi::Array list = Napi::Array::New(env);
  uint32_t count = 0;
  for (const addrinfo *a = found; a; a = a->ai_next)
    list.Set(count++, toSockAddr(env, fromSockaddr(a->ai_addr, a->ai_addrlen)));
  freeaddrinfo(found);
  return list;
}

template <int (*GetName)(int, sockaddr *, socklen_t *)>
static Napi::Value nameOf(const Napi::CallbackInfo &info, const char *syscall) {
  sockaddr_storage addr = {};
  socklen_t length = sizeof(addr);
  if (GetName(argInt(info, 0), reinterpret_cast<sockaddr *>(&addr), &length) < 0)
    return throwErrno(info.Env(), syscall, errno);
  return toSockAddr(info.Env(), fromSockaddr(reinterpret_cast<sockaddr *>(&addr), length));
}

static int getSockName(int fd, sockaddr *addr, socklen_t *length) { return getsockname(fd, addr, length); }
static int getPeerName(int fd, sockaddr *addr, socklen_t *length) { return getpeername(fd, addr, length); }

static Napi::Value sockName(const Napi::CallbackInfo &info) { return nameOf<getSockName>(info, "getsockname"); }
static Napi::Value peerName(const Napi::CallbackInfo &info) { return nameOf<getPeerName>(info, "getpeername"); }

static Napi::Value peerCred(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  ucred cred;
  socklen_t length = sizeof(cred);
  if (getsockopt(argInt(info, 0), SOL_SOCKET, SO_PEERCRED, &cred, &length) < 0) return env.Null();
  Napi::Array list = Napi::Array::New(env, 3);
  list.Set(0u, Napi::Number::New(env, cred.uid));
  list.Set(1u, Napi::Number::New(env, cred.gid));
  list.Set(2u, Napi::Number::New(env, cred.pid));
  return list;
}

/* ---- listening ---- */

/** Returns the descriptor, or -1 with errno and *failed naming the call. The order is that of PgBouncer's add_listen. */
static int listenOn(const Address &addr, int backlog, bool reuseport, const char **failed) {
  const int family = addr.sa()->sa_family;
  const int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  *failed = "socket";
  if (fd < 0) return -1;
  bool ok = true;
  if (family != AF_UNIX) {
    *failed = "setsockopt";
    ok = setOption(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  }
  if (ok && family == AF_INET6) {
    *failed = "setsockopt/IPV6_V6ONLY";
    ok = setOption(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
  }
  if (ok && family != AF_UNIX && reuseport) {
    *failed = "setsockopt/SO_REUSEPORT";
    ok = setOption(fd, SOL_SOCKET, SO_REUSEPORT, 1);
  }
  if (ok) {
    *failed = "bind";
    ok = bind(fd, addr.sa(), addr.length) == 0;
  }
  if (ok) {
    *failed = "listen";
    ok = listen(fd, backlog) == 0;
  }
  if (ok) return fd;
  const int err = errno;
  close(fd);
  errno = err;
  return -1;
}

static Napi::Value listenOrThrow(Napi::Env env, int family, const std::string &host, int port, int backlog,
                                 bool reuseport) {
  Address addr;
  const char *failed = "";
  const int err = toAddress(family, host, port, &addr);
  if (err < 0) return throwErrno(env, "bind", -err);
  const int fd = listenOn(addr, backlog, reuseport, &failed);
  return fd < 0 ? throwErrno(env, failed, errno) : toInt(env, fd);
}

static Napi::Value listenTcp(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  if (!info[0].IsObject()) return throwErrno(env, "bind", EINVAL);
  Napi::Object addr = info[0].As<Napi::Object>();
  int32_t family = 0, port = 0;
  napi_get_value_int32(env, addr.Get("family"), &family);
  napi_get_value_int32(env, addr.Get("port"), &port);
  if (family == kUnix) return throwErrno(env, "bind", EINVAL);
  return listenOrThrow(env, family, byteString(env, addr.Get("host")), port, argInt(info, 1), argInt(info, 2) > 0);
}

static Napi::Value listenUnix(const Napi::CallbackInfo &info) {
  return listenOrThrow(info.Env(), kUnix, argBytes(info, 0), 0, argInt(info, 1), false);
}

/* For a socket that listens already, listen() only changes the backlog. */
static Napi::Value listenBacklog(const Napi::CallbackInfo &info) {
  const int res = listen(argInt(info, 0), argInt(info, 1));
  return toInt(info.Env(), res < 0 ? -errno : 0);
}

/* The kernel completes a connect while the listener's queue has room, so this tells whether a process listens. */
static Napi::Value unixProbe(const Napi::CallbackInfo &info) {
  Address addr;
  bool answered = false;
  if (toAddress(kUnix, argBytes(info, 0), 0, &addr) == 0) {
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
      // EAGAIN: the queue is full, so a process listens; a blocking connect could wait for ever
      answered = connect(fd, addr.sa(), addr.length) == 0 || errno == EAGAIN;
      close(fd);
    }
  }
  return Napi::Boolean::New(info.Env(), answered);
}

/* ---- options ---- */

static bool setKeepalive(int fd, bool on, int idle, int interval, int count) {
  if (!setOption(fd, SOL_SOCKET, SO_KEEPALIVE, on ? 1 : 0)) return false;
  if (!on) return true;
  if (idle && !setOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, idle) && errno != ENOPROTOOPT) return false;
  if (interval && !setOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, interval) && errno != ENOPROTOOPT) return false;
  return count <= 0 || setOption(fd, IPPROTO_TCP, TCP_KEEPCNT, count) || errno == ENOPROTOOPT;
}

static bool setUp(int fd) {
  if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) return false;
  const int flags = fcntl(fd, F_GETFL);
  return flags >= 0 && ((flags & O_NONBLOCK) || fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0);
}

static Napi::Value setUpSocket(const Napi::CallbackInfo &info) {
  return setUp(argInt(info, 0)) ? info.Env().Undefined() : throwErrno(info.Env(), "socket_setup", errno);
}

/* PgBouncer's tune_socket, which logs the name of the step that failed. */
static Napi::Value tuneTcp(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const int fd = argInt(info, 0), userTimeout = argInt(info, 5, 0), buffer = argInt(info, 6, 0);
  if (!setKeepalive(fd, argInt(info, 1, 0) > 0, argInt(info, 2, 0), argInt(info, 3, 0), argInt(info, 4, 0)))
    return throwErrno(env, "socket_set_keepalive", errno);
  if (userTimeout && !setOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, userTimeout))
    return throwErrno(env, "setsockopt/TCP_USER_TIMEOUT", errno);
  if (buffer && !setOption(fd, SOL_SOCKET, SO_SNDBUF, buffer)) return throwErrno(env, "setsockopt/SO_SNDBUF", errno);
  if (buffer && !setOption(fd, SOL_SOCKET, SO_RCVBUF, buffer)) return throwErrno(env, "setsockopt/SO_RCVBUF", errno);
  if (!setOption(fd, IPPROTO_TCP, TCP_NODELAY, 1)) return throwErrno(env, "setsockopt/TCP_NODELAY", errno);
  return env.Undefined();
}

static Napi::Value deferAccept(const Napi::CallbackInfo &info) {
  const bool ok = setOption(argInt(info, 0), IPPROTO_TCP, TCP_DEFER_ACCEPT, argInt(info, 1) > 0 ? 1 : 0);
  return toInt(info.Env(), ok ? 0 : -errno);
}

static Napi::Value socketPair(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) return throwErrno(env, "socketpair", errno);
  Napi::Array list = Napi::Array::New(env, 2);
  list.Set(0u, toInt(env, pair[0]));
  list.Set(1u, toInt(env, pair[1]));
  return list;
}

/* ---- descriptors over a Unix socket ---- */

static Napi::Value sendFds(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  uint8_t *bytes;
  size_t length;
  if (!bytesOf(env, info[1], &bytes, &length) || !info[2].IsArray()) return toInt(env, -EINVAL);
  Napi::Array list = info[2].As<Napi::Array>();
  const size_t count = list.Length();
  // on a stream, the kernel drops descriptors that come without a byte
  if (count > kFdsMax || length == 0) return toInt(env, -EINVAL);
  int fds[kFdsMax];
  for (size_t i = 0; i < count; i++)
    if (napi_get_value_int32(env, list.Get(static_cast<uint32_t>(i)), &fds[i]) != napi_ok) return toInt(env, -EINVAL);
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(fds))] = {};
  iovec piece = {bytes, length};
  msghdr message = {};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  if (count > 0) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(count * sizeof(int));
    cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(head), fds, count * sizeof(int));
  }
  ssize_t n;
  do n = sendmsg(argInt(info, 0), &message, MSG_NOSIGNAL);
  while (n < 0 && errno == EINTR);
  return toInt(env, n < 0 ? -errno : static_cast<int>(n));
}

static Napi::Value recvFds(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  uint8_t *into = nullptr;
  size_t room = 0;
  const bool valid = bytesOf(env, info[1], &into, &room) && room > 0;
  alignas(cmsghdr) char control[CMSG_SPACE(kFdsKernelMax * sizeof(int))];
  iovec piece = {into, room};
  msghdr message = {};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t n = -1;
  errno = EINVAL;
  if (valid) {
    do n = recvmsg(argInt(info, 0), &message, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
  }
  int result = n < 0 ? -errno : static_cast<int>(n);
  std::vector<int> received;
  for (cmsghdr *head = n < 0 ? nullptr : CMSG_FIRSTHDR(&message); head; head = CMSG_NXTHDR(&message, head)) {
    if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) continue;
    const size_t before = received.size();
    received.resize(before + (head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    memcpy(received.data() + before, CMSG_DATA(head), (received.size() - before) * sizeof(int));
  }
  // the kernel dropped some: the receiver would take the later ones for those
  if (n >= 0 && (message.msg_flags & MSG_CTRUNC)) {
    for (const int fd : received) close(fd);
    received.clear();
    result = -EMFILE;
  }
  Napi::Array fds = Napi::Array::New(env, received.size());
  for (size_t i = 0; i < received.size(); i++) fds.Set(static_cast<uint32_t>(i), toInt(env, received[i]));
  Napi::Object object = Napi::Object::New(env);
  object.Set("result", toInt(env, result));
  object.Set("fds", fds);
  return object;
}

/* ---- waiting for one descriptor, one datagram ---- */

/* For the handover only, during which no other descriptor is served. A signal does not end the wait: the loop handles it
 * later. */
static Napi::Value pollFd(const Napi::CallbackInfo &info) {
  pollfd one = {argInt(info, 0), static_cast<short>(argInt(info, 1, 0) > 0 ? POLLOUT : POLLIN), 0};
  const int timeoutMs = argInt(info, 2, 0);
  const double end = monotonicUsec() + timeoutMs * 1e3;
  int n = poll(&one, 1, timeoutMs);
  while (n < 0 && errno == EINTR) {
    const double leftMs = (end - monotonicUsec()) / 1e3;
    n = poll(&one, 1, timeoutMs < 0 ? -1 : leftMs > 0 ? static_cast<int>(leftMs) + 1 : 0);
  }
  return toInt(info.Env(), n < 0 ? -errno : n);
}

/* For the handover only, where no event tells that another try may succeed. */
static Napi::Value sleepMs(const Napi::CallbackInfo &info) {
  const int ms = argInt(info, 0, 0);
  timespec left = {ms > 0 ? ms / 1000 : 0, ms > 0 ? ms % 1000 * 1000000L : 0};
  while (nanosleep(&left, &left) < 0 && errno == EINTR) {
  }
  return info.Env().Undefined();
}

/* For the handover only: tells whether the other process reads. Linux counts the kernel's overhead too. */
static Napi::Value unreadBytes(const Napi::CallbackInfo &info) {
  int bytes = 0;
  return toInt(info.Env(), ioctl(argInt(info, 0), SIOCOUTQ, &bytes) < 0 ? -errno : bytes);
}

/* The peer's sends fail from now on; what it sent before can still be received. */
static Napi::Value refuseMore(const Napi::CallbackInfo &info) {
  return toInt(info.Env(), shutdown(argInt(info, 0), SHUT_RD) < 0 ? -errno : 0);
}

static Napi::Value sendDatagram(const Napi::CallbackInfo &info) {
  Address addr;
  const std::string text = argBytes(info, 1);
  const int bad = toAddress(kUnix, argBytes(info, 0), 0, &addr);
  if (bad < 0) return toInt(info.Env(), bad);
  const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return toInt(info.Env(), -errno);
  const ssize_t n = sendto(fd, text.data(), text.size(), MSG_NOSIGNAL, addr.sa(), addr.length);
  const int err = n < 0 ? -errno : 0;
  close(fd);
  return toInt(info.Env(), err);
}

/* ---- registration ---- */

void bindSocket(Napi::Env env, Napi::Object exports, State *state) {
  exports.Set("getaddrinfoPassive", Napi::Function::New<getaddrinfoPassive>(env, "getaddrinfoPassive", state));
  exports.Set("sockName", Napi::Function::New<sockName>(env, "sockName", state));
  exports.Set("peerName", Napi::Function::New<peerName>(env, "peerName", state));
  exports.Set("peerCred", Napi::Function::New<peerCred>(env, "peerCred", state));
  exports.Set("listenTcp", Napi::Function::New<listenTcp>(env, "listenTcp", state));
  exports.Set("listenUnix", Napi::Function::New<listenUnix>(env, "listenUnix", state));
  exports.Set("listenBacklog", Napi::Function::New<listenBacklog>(env, "listenBacklog", state));
  exports.Set("unixProbe", Napi::Function::New<unixProbe>(env, "unixProbe", state));
  exports.Set("setUpSocket", Napi::Function::New<setUpSocket>(env, "setUpSocket", state));
  exports.Set("tuneTcp", Napi::Function::New<tuneTcp>(env, "tuneTcp", state));
  exports.Set("deferAccept", Napi::Function::New<deferAccept>(env, "deferAccept", state));
  exports.Set("socketPair", Napi::Function::New<socketPair>(env, "socketPair", state));
  exports.Set("pollFd", Napi::Function::New<pollFd>(env, "pollFd", state));
  exports.Set("sleepMs", Napi::Function::New<sleepMs>(env, "sleepMs", state));
  exports.Set("unreadBytes", Napi::Function::New<unreadBytes>(env, "unreadBytes", state));
  exports.Set("refuseMore", Napi::Function::New<refuseMore>(env, "refuseMore", state));
  exports.Set("sendDatagram", Napi::Function::New<sendDatagram>(env, "sendDatagram", state));
  exports.Set("sendFds", Napi::Function::New<sendFds>(env, "sendFds", state));
  exports.Set("recvFds", Napi::Function::New<recvFds>(env, "recvFds", state));
}

}  // namespace tsb
