/*
 * The program of the tests in this folder. It is a library that Node loads, because the OpenSSL of the addon is the one inside
 * Node. TSB_NATIVE_TEST names the test; without it, all names are listed.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../check.h"

static int run(const char *name) {
  for (const check::Test &test : check::tests()) {
    if (!name)
      printf("%s\n", test.name.c_str());
    else if (test.name == name)
      return test.body(), 0;
  }
  return name ? 2 : 0;
}

/* Node calls it when it loads the library. */
extern "C" __attribute__((visibility("default"))) void *napi_register_module_v1(void *, void *) {
  const int status = run(getenv("TSB_NATIVE_TEST"));
  fflush(stdout);
  _exit(status);
}
