/*
 * TLS and SCRAM-SHA-256 of the load generator. Compiled without OpenSSL (LOAD_NO_OPENSSL), both report that they are
 * missing.
 */
#pragma once

#include <string>
#include <unordered_map>

struct ssl_st;

namespace load {

/** What a call on a TLS connection came to. */
enum class Io { kDone, kBlocked, kClosed };

bool secureAvailable();

/** One TLS connection over a non-blocking socket; certificates are not verified. */
class Tls {
 public:
  explicit Tls(int fd);
  ~Tls();
  Tls(const Tls &) = delete;
  Tls &operator=(const Tls &) = delete;
  Io handshake();
  /** *n = bytes read, if kDone */
  Io read(char *into, int size, int *n);
  Io write(const char *bytes, int size, int *n);
  /** whether bytes were received that read() has not returned yet */
  bool pending() const;

 private:
  Io resultOf(int result) const;
  ssl_st *ssl_;
};

/** The salted passwords, so that clients with the same secret pay for the iterations once. One per thread. */
using SaltedPasswords = std::unordered_map<std::string, std::string>;

/** The client's side of one SCRAM-SHA-256 exchange. */
class Scram {
 public:
  /** the client-first-message; `nonce` must be unique */
  std::string first(const std::string &nonce);
  /** the client-final-message, or '' if the server's message is malformed */
  std::string final(const std::string &serverFirst, const std::string &password, SaltedPasswords *cache);

 private:
  std::string bare_;
};

}  // namespace load
