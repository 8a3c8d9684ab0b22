/*
 * recv and send for backends. In a multi-threaded process such as Node the C library adds bookkeeping for thread
 * cancellation to both. No thread is cancelled here, so on Linux they are plain system calls, which cost a tenth less.
 */
#pragma once

#include <errno.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstddef>
#include <cstdint>

namespace tsb {

inline ssize_t plainRecv(int fd, uint8_t *place, size_t most) {
#ifdef __linux__
  return syscall(SYS_recvfrom, fd, place, most, MSG_DONTWAIT, nullptr, nullptr);
#else
  return recv(fd, place, most, MSG_DONTWAIT);
#endif
}

inline ssize_t plainSend(int fd, const uint8_t *bytes, size_t length) {
#ifdef __linux__
  return syscall(SYS_sendto, fd, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT, nullptr, 0);
#else
  return send(fd, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT);
#endif
}

inline ssize_t recvRetry(int fd, uint8_t *place, size_t most) {
  ssize_t n;
  do n = plainRecv(fd, place, most);
  while (n < 0 && errno == EINTR);
  return n;
}

inline ssize_t sendRetry(int fd, const uint8_t *bytes, size_t length) {
  ssize_t n;
  do n = plainSend(fd, bytes, length);
  while (n < 0 && errno == EINTR);
  return n;
}

/** Sends the parts as one. */
inline ssize_t sendPartsRetry(int fd, iovec *parts, size_t count) {
  msghdr message = {};
  message.msg_iov = parts;
  message.msg_iovlen = count;
  ssize_t n;
  do n = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  while (n < 0 && errno == EINTR);
  return n;
}

inline bool wouldBlock(int err) { return err == EAGAIN || err == EWOULDBLOCK; }

}  // namespace tsb
