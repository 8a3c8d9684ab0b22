/* A test program in as little as it takes: tests register themselves, a check that fails ends its test. */
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace check {

struct Test {
  std::string name;
  void (*body)();
};

inline std::vector<Test> &tests() {
  static std::vector<Test> all;
  return all;
}

struct Register {
  Register(const std::string &name, void (*body)()) { tests().push_back({name, body}); }
};

[[noreturn]] inline void fail(const char *file, int line, const std::string &what) {
  fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
  exit(1);
}

inline std::string text(const std::string &value) { return value.size() > 80 ? value.substr(0, 80) + "..." : value; }
template <typename T>
std::string text(const T &value) {
  return std::to_string(value);
}

template <typename A, typename B>
void equal(const char *file, int line, const char *what, const A &actual, const B &expected) {
  if (!(actual == expected)) fail(file, line, std::string(what) + " is " + text(actual) + ", expected " + text(expected));
}

}  // namespace check

#define CHECK(condition) \
  do { \
    if (!(condition)) check::fail(__FILE__, __LINE__, #condition); \
  } while (0)
#define CHECK_EQUAL(actual, expected) check::equal(__FILE__, __LINE__, #actual, actual, expected)
#define TEST(id, name) \
  static void id(); \
  static const check::Register register_##id(name, id); \
  static void id()
