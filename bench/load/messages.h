/*
 * The messages of protocol 3 that the load generator sends.
 */
#pragma once

#include <cstdint>
#include <string>

namespace load {

/** The number that requests send, in this many digits, so that a request can be changed in place. */
constexpr int kNumberDigits = 6;
constexpr const char *kNumber = "100000";
constexpr uint32_t kProtocol30 = 0x00030000;
constexpr uint32_t kTlsRequest = 80877103;

inline std::string int32(uint32_t value) {
  const char bytes[4] = {static_cast<char>(value >> 24), static_cast<char>(value >> 16), static_cast<char>(value >> 8),
                         static_cast<char>(value)};
  return std::string(bytes, 4);
}

inline std::string int16(uint16_t value) {
  const char bytes[2] = {static_cast<char>(value >> 8), static_cast<char>(value)};
  return std::string(bytes, 2);
}

inline std::string cstring(const std::string &text) { return text + '\0'; }

inline std::string message(char type, const std::string &body) {
  return type + int32(static_cast<uint32_t>(body.size() + 4)) + body;
}

inline std::string startup(uint32_t code, const std::string &body) {
  return int32(static_cast<uint32_t>(body.size() + 8)) + int32(code) + body;
}

inline std::string parse(const std::string &name, const std::string &query) {
  return message('P', cstring(name) + cstring(query) + int16(0));
}

/** Bind, Describe, Execute and Sync, as libpq sends them. @param parameter one parameter; '' = none */
inline std::string bindAndExecute(const std::string &name, const std::string &parameter) {
  const std::string values =
      parameter.empty() ? int16(0) : int16(1) + int32(static_cast<uint32_t>(parameter.size())) + parameter;
  return message('B', cstring("") + cstring(name) + int16(0) + values + int16(0)) +
         message('D', "P" + cstring("")) + message('E', cstring("") + int32(0)) + message('S', "");
}

/** Version 2 of the PROXY protocol: a client at 192.0.2.1 has connected to this port of 192.0.2.2. */
inline std::string proxyHeader(uint32_t port) {
  const std::string signature("\r\n\r\n\0\r\nQUIT\n", 12);
  const std::string tcp4("\x21\x11", 2);
  const std::string body = int32(0xc0000201) + int32(0xc0000202) + int16(40'000) + int16(static_cast<uint16_t>(port));
  return signature + tcp4 + int16(static_cast<uint16_t>(body.size())) + body;
}

}  // namespace load
