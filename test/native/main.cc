/* Runs the test whose name is given, or lists all names. --refusal: says why the kernel refuses io_uring. */
#include <string.h>
#include <sys/resource.h>

#include "check.h"
#include "world.h"

int main(int argc, char **argv) {
  // some tests need more descriptors than a shell allows by default
  rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  if (argc == 2 && strcmp(argv[1], "--refusal") == 0) return printf("%s\n", uringRefused().c_str()), 0;
  for (const check::Test &test : check::tests()) {
    if (argc < 2)
      printf("%s\n", test.name.c_str());
    else if (test.name == argv[1])
      return test.body(), 0;
  }
  return argc < 2 ? 0 : 2;
}
