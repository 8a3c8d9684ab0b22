/* POSIX calls that Node's own modules lack, for JavaScript: descriptors, sessions, limits, accounts, texts, syslog. */
#include <dirent.h>
#include <errno.h>
#include <grp.h>
#ifdef __linux__
#include <link.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <netdb.h>
#include <pwd.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <syslog.h>
#include <unistd.h>

#include <vector>

#include "addon.h"

namespace tsb {

/** Largest record of the account database that is read; sysconf may give no limit. */
constexpr size_t kAccountMax = 1 << 20;

/* ---- descriptors, process ---- */

static Napi::Value closeFd(const Napi::CallbackInfo &info) {
  return toInt(info.Env(), ::close(argInt(info, 0)) < 0 ? -errno : 0);
}

static Napi::Value dup2(const Napi::CallbackInfo &info) {
  const int fd = ::dup2(argInt(info, 0), argInt(info, 1));
  return toInt(info.Env(), fd < 0 ? -errno : fd);
}

static Napi::Value setsid(const Napi::CallbackInfo &info) {
  const pid_t session = ::setsid();
  return toInt(info.Env(), session < 0 ? -errno : session);
}

/* Where the kernel finds the arguments of this process: fields 48 and 49 of /proc/self/stat. False if unknown. */
static bool findArguments(unsigned long *start, unsigned long *end) {
  char text[2048];
  FILE *file = fopen("/proc/self/stat", "re");
  if (file == nullptr) return false;
  const size_t length = fread(text, 1, sizeof text - 1, file);
  fclose(file);
  text[length] = '\0';
  // the name, field 2, is in parentheses and may contain some itself
  const char *at = strrchr(text, ')');
  for (int field = 2; at != nullptr && field < 48; field++) at = strchr(at + 1, ' ');
  return at != nullptr && sscanf(at, " %lu %lu", start, end) == 2 && *start > 0 && *start < *end;
}

/* The arguments are this process's own memory, whose size cannot change: the rest is filled with NULs. */
static Napi::Value setProcessTitle(const Napi::CallbackInfo &info) {
  const std::string name = argBytes(info, 0);
  const Napi::Uint8Array args = info[1].As<Napi::Uint8Array>();
  prctl(PR_SET_NAME, name.c_str(), 0, 0, 0);
  unsigned long start, end;
  if (!findArguments(&start, &end) || args.ByteLength() > end - start) return info.Env().Undefined();
  char *area = reinterpret_cast<char *>(start);
  memcpy(area, args.Data(), args.ByteLength());
  memset(area + args.ByteLength(), 0, end - start - args.ByteLength());
  return info.Env().Undefined();
}

/* Otherwise the kernel writes no core dump of this process, and no other process of its user may trace it or read its memory. */
static Napi::Value setDumpable(const Napi::CallbackInfo &info) {
  return toInt(info.Env(), prctl(PR_SET_DUMPABLE, argInt(info, 0) == 1 ? 1 : 0, 0, 0, 0) < 0 ? -errno : 0);
}

/*
 * Ends the process while its threads go on: exit() would take down what they use, such as OpenSSL, or wait for a
 * thread that does not respond.
 */
static Napi::Value exitNow(const Napi::CallbackInfo &info) {
  // the kernel's profiler gets the names of JavaScript functions from a file that V8 writes
  fflush(nullptr);
  _exit(argInt(info, 0));
}

static Napi::Value rlimitNofile(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return throwErrno(env, "getrlimit", errno);
  const auto number = [env](rlim_t value) {
    return Napi::Number::New(env, value == RLIM_INFINITY ? -1.0 : static_cast<double>(value));
  };
  Napi::Array list = Napi::Array::New(env, 2);
  list.Set(0u, number(limit.rlim_cur));
  list.Set(1u, number(limit.rlim_max));
  return list;
}

#ifdef __linux__
static bool holds(const dl_phdr_info *object, uintptr_t address) {
  for (int i = 0; i < object->dlpi_phnum; i++) {
    const auto &part = object->dlpi_phdr[i];
    if (part.p_type == PT_LOAD && address - (object->dlpi_addr + part.p_vaddr) < part.p_memsz) return true;
  }
  return false;
}

/* Node's constants, most of which only the start reads. Nothing has changed them, so what is read again comes from the page
 * cache. Code is left alone: a debugger or a probe may have changed it. */
static int releaseConstants(dl_phdr_info *object, size_t, void *) {
  if (!holds(object, reinterpret_cast<uintptr_t>(&napi_get_undefined))) return 0;
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  for (int i = 0; i < object->dlpi_phnum; i++) {
    const auto &part = object->dlpi_phdr[i];
    if (part.p_type != PT_LOAD || part.p_flags != PF_R) continue;
    const uintptr_t first = object->dlpi_addr + part.p_vaddr;
    const uintptr_t begin = (first + page - 1) / page * page;
    const uintptr_t end = (first + part.p_filesz) / page * page;
    if (begin < end) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_DONTNEED);
  }
  return 1;
}
#endif

static Napi::Value releaseMemory(const Napi::CallbackInfo &info) {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
#ifdef __linux__
  dl_iterate_phdr(releaseConstants, nullptr);
#endif
  return info.Env().Undefined();
}

/* Empty if the kernel has more CPUs than cpu_set_t holds; pinning is then not available. */
static Napi::Value cpuAffinity(const Napi::CallbackInfo &info) {
  Napi::Array list = Napi::Array::New(info.Env());
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) < 0) return list;
  uint32_t count = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (CPU_ISSET(cpu, &set)) list.Set(count++, toInt(info.Env(), cpu));
  }
  return list;
}

/* The kernel sets the affinity of a thread, not of a process. Threads that end meanwhile are no failure. */
static Napi::Value setCpuAffinity(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  cpu_set_t set;
  CPU_ZERO(&set);
  const Napi::Array list = info[0].As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); i++) {
    const int cpu = list.Get(i).ToNumber().Int32Value();
    if (cpu >= 0 && cpu < CPU_SETSIZE) CPU_SET(cpu, &set);
  }
  DIR *tasks = opendir("/proc/self/task");
  if (!tasks) return toInt(env, -errno);
  int err = 0;
  while (const dirent *task = readdir(tasks)) {
    const pid_t thread = atoi(task->d_name);
    if (thread > 0 && sched_setaffinity(thread, sizeof set, &set) < 0 && errno != ESRCH) err = -errno;
  }
  closedir(tasks);
  return toInt(env, err);
}

/* ---- clocks ---- */

static Napi::Value readClock(const Napi::CallbackInfo &info) { return Napi::Number::New(info.Env(), monotonicUsec()); }

static Napi::Value wallOffset(const Napi::CallbackInfo &info) {
  return Napi::Number::New(info.Env(), clockUsec(CLOCK_REALTIME) - monotonicUsec());
}

static Napi::Value errnoText(const Napi::CallbackInfo &info) {
  return toString(info.Env(), ::strerror(argInt(info, 0, 0)));
}

static Napi::Value gaiText(const Napi::CallbackInfo &info) {
  return toString(info.Env(), ::gai_strerror(argInt(info, 0, 0)));
}

/* ---- accounts ---- */

/** Calls one of the get...r functions with a buffer that grows until the record fits. Returns false without a record. */
template <typename Record, typename Call>
static bool account(Record *record, std::vector<char> *buffer, Call call) {
  for (size_t size = 1024; size <= kAccountMax; size *= 4) {
    Record *found = nullptr;
    buffer->resize(size);
    const int err = call(record, buffer->data(), size, &found);
    if (err == EINTR) size /= 4;
    if (err == 0) return found != nullptr;
    if (err != ERANGE && err != EINTR) return false;
  }
  return false;
}

static Napi::Value userByName(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string name = argBytes(info, 0);
  passwd user;
  std::vector<char> buffer;
  const bool found = account(&user, &buffer, [&](passwd *record, char *bytes, size_t size, passwd **result) {
    return getpwnam_r(name.c_str(), record, bytes, size, result);
  });
  if (!found) return env.Null();
  Napi::Object object = Napi::Object::New(env);
  object.Set("uid", Napi::Number::New(env, user.pw_uid));
  object.Set("gid", Napi::Number::New(env, user.pw_gid));
  return object;
}

static Napi::Value userById(const Napi::CallbackInfo &info) {
  const uid_t uid = static_cast<uid_t>(argInt(info, 0));
  passwd user;
  std::vector<char> buffer;
  const bool found = account(&user, &buffer, [&](passwd *record, char *bytes, size_t size, passwd **result) {
    return getpwuid_r(uid, record, bytes, size, result);
  });
  return found ? toString(info.Env(), user.pw_name) : info.Env().Null();
}

static Napi::Value groupByName(const Napi::CallbackInfo &info) {
  const std::string name = argBytes(info, 0);
  group record;
  std::vector<char> buffer;
  const bool found = account(&record, &buffer, [&](group *into, char *bytes, size_t size, group **result) {
    return getgrnam_r(name.c_str(), into, bytes, size, result);
  });
  return Napi::Number::New(info.Env(), found ? static_cast<double>(record.gr_gid) : -1.0);
}

static Napi::Value chown(const Napi::CallbackInfo &info) {
  const std::string path = argBytes(info, 0);
  const int result = ::chown(path.c_str(), static_cast<uid_t>(argInt(info, 1)), static_cast<gid_t>(argInt(info, 2)));
  return toInt(info.Env(), result < 0 ? -errno : 0);
}

/* ---- syslog ---- */

struct Facility {
  const char *name;
  int code;
};

/* the names that PgBouncer's syslog_facility takes */
static const Facility kFacilities[] = {
    {"auth", LOG_AUTH},     {"authpriv", LOG_AUTHPRIV}, {"daemon", LOG_DAEMON}, {"user", LOG_USER},
    {"local0", LOG_LOCAL0}, {"local1", LOG_LOCAL1},     {"local2", LOG_LOCAL2}, {"local3", LOG_LOCAL3},
    {"local4", LOG_LOCAL4}, {"local5", LOG_LOCAL5},     {"local6", LOG_LOCAL6}, {"local7", LOG_LOCAL7},
};

void posixEnd(State *state) {
  if (!state->syslogIdent) return;
  ::closelog();
  delete state->syslogIdent;
  state->syslogIdent = nullptr;
}

/* Like PgBouncer, logs as daemon if the facility is unknown. Returns whether it is known. */
static Napi::Value openlog(const Napi::CallbackInfo &info) {
  State *state = stateOf(info);
  const std::string name = argBytes(info, 1);
  int code = LOG_DAEMON;
  bool known = false;
  for (const Facility &facility : kFacilities) {
    if (name != facility.name) continue;
    code = facility.code;
    known = true;
  }
  posixEnd(state);
  state->syslogIdent = new std::string(argBytes(info, 0));
  ::openlog(state->syslogIdent->c_str(), LOG_PID, code);
  return Napi::Boolean::New(info.Env(), known);
}

static Napi::Value writeSyslog(const Napi::CallbackInfo &info) {
  ::syslog(argInt(info, 0, LOG_INFO), "%s", argBytes(info, 1).c_str());
  return info.Env().Undefined();
}

static Napi::Value closelog(const Napi::CallbackInfo &info) {
  posixEnd(stateOf(info));
  return info.Env().Undefined();
}

/* ---- registration ---- */

void bindPosix(Napi::Env env, Napi::Object exports, State *state) {
  exports.Set("readClock", Napi::Function::New<readClock>(env, "readClock", state));
  exports.Set("wallOffset", Napi::Function::New<wallOffset>(env, "wallOffset", state));
  exports.Set("closeFd", Napi::Function::New<closeFd>(env, "closeFd", state));
  exports.Set("dup2", Napi::Function::New<dup2>(env, "dup2", state));
  exports.Set("setsid", Napi::Function::New<setsid>(env, "setsid", state));
  exports.Set("setProcessTitle", Napi::Function::New<setProcessTitle>(env, "setProcessTitle", state));
  exports.Set("exitNow", Napi::Function::New<exitNow>(env, "exitNow", state));
  exports.Set("setDumpable", Napi::Function::New<setDumpable>(env, "setDumpable", state));
  exports.Set("rlimitNofile", Napi::Function::New<rlimitNofile>(env, "rlimitNofile", state));
  exports.Set("releaseMemory", Napi::Function::New<releaseMemory>(env, "releaseMemory", state));
  exports.Set("cpuAffinity", Napi::Function::New<cpuAffinity>(env, "cpuAffinity", state));
  exports.Set("setCpuAffinity", Napi::Function::New<setCpuAffinity>(env, "setCpuAffinity", state));
  exports.Set("strerror", Napi::Function::New<errnoText>(env, "strerror", state));
  exports.Set("gaiStrerror", Napi::Function::New<gaiText>(env, "gaiStrerror", state));
  exports.Set("getpwnam", Napi::Function::New<userByName>(env, "getpwnam", state));
  exports.Set("getpwuid", Napi::Function::New<userById>(env, "getpwuid", state));
  exports.Set("getgrnam", Napi::Function::New<groupByName>(env, "getgrnam", state));
  exports.Set("chown", Napi::Function::New<chown>(env, "chown", state));
  exports.Set("openlog", Napi::Function::New<openlog>(env, "openlog", state));
  exports.Set("syslog", Napi::Function::New<writeSyslog>(env, "syslog", state));
  exports.Set("closelog", Napi::Function::New<closelog>(env, "closelog", state));
}

}  // namespace tsb
