/*
 * Runs a program and counts its system calls, with ptrace. cost.test.ts compiles and runs it.
 *
 *     count-calls PROGRAM ARGUMENT...   runs the program, with its standard output on standard error
 *     count-calls --probe               prints "ok", or why this cannot work here; then whether io_uring works
 *
 * Commands are single letters on standard input. Each is answered by a line:
 *
 *     c   {"main":{"recvfrom":12,...},"others":{...}}: the calls so far of the main thread, and of all other threads
 *     f   "frozen", once no thread of the program runs
 *     t   "running"
 */
#include <poll.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

static constexpr int kSyscallStop = SIGTRAP | 0x80;
static constexpr size_t kCommandsMax = 64;
static constexpr unsigned kProbeEntries = 8;
static constexpr size_t kRingParamsBytes = 120;

struct Thread {
  bool stopped = false;
  /** to be delivered when it goes on */
  int signal = 0;
};

static pid_t mainThread = 0;
static bool freezing = false;
static bool frozenReported = false;
static std::map<pid_t, Thread> threads;
static std::map<uint64_t, uint64_t> mainCalls;
static std::map<uint64_t, uint64_t> otherCalls;

[[noreturn]] static void die(const char *what) {
  fprintf(stderr, "count-calls: %s: %s\n", what, strerror(errno));
  exit(1);
}

/* The calls that the test has bounds for, and those that explain a failure. */
static std::string nameOf(uint64_t number) {
  static const std::map<uint64_t, const char *> names = {
#ifdef SYS_epoll_wait
      {SYS_epoll_wait, "epoll_wait"},
#endif
#ifdef SYS_poll
      {SYS_poll, "poll"},
#endif
      {SYS_epoll_pwait, "epoll_pwait"}, {SYS_epoll_ctl, "epoll_ctl"}, {SYS_io_uring_enter, "io_uring_enter"},
      {SYS_recvfrom, "recvfrom"},       {SYS_recvmsg, "recvmsg"},     {SYS_sendto, "sendto"},
      {SYS_sendmsg, "sendmsg"},         {SYS_read, "read"},           {SYS_readv, "readv"},
      {SYS_write, "write"},             {SYS_writev, "writev"},       {SYS_close, "close"},
      {SYS_futex, "futex"},             {SYS_madvise, "madvise"},     {SYS_mprotect, "mprotect"},
      {SYS_mmap, "mmap"},               {SYS_munmap, "munmap"},       {SYS_clock_gettime, "clock_gettime"},
  };
  const auto found = names.find(number);
  return found == names.end() ? "#" + std::to_string(number) : found->second;
}

static std::string json(const std::map<uint64_t, uint64_t> &calls) {
  std::string text = "{";
  for (const auto &[number, count] : calls) {
    if (text.size() > 1) text += ',';
    text += '"' + nameOf(number) + "\":" + std::to_string(count);
  }
  return text + "}";
}

static void answer(const std::string &line) {
  printf("%s\n", line.c_str());
  fflush(stdout);
}

static void resume(pid_t tid, Thread *thread) {
  const int signal = thread->signal;
  thread->stopped = false;
  thread->signal = 0;
  // ESRCH: it was killed meanwhile, which waitpid() reports next
  ptrace(PTRACE_SYSCALL, tid, nullptr, reinterpret_cast<void *>(static_cast<intptr_t>(signal)));
}

static void countCall(pid_t tid) {
  __ptrace_syscall_info info{};
  const auto size = reinterpret_cast<void *>(sizeof info);
  if (ptrace(static_cast<__ptrace_request>(PTRACE_GET_SYSCALL_INFO), tid, size, &info) <= 0) return;
  if (info.op != PTRACE_SYSCALL_INFO_ENTRY) return;
  (tid == mainThread ? mainCalls : otherCalls)[info.entry.nr]++;
}

static void reportFrozen() {
  if (!freezing || frozenReported) return;
  for (const auto &[tid, thread] : threads)
    if (!thread.stopped) return;
  frozenReported = true;
  answer("frozen");
}

static void onStop(pid_t tid, int status) {
  Thread *thread = &threads[tid];
  const int signal = WSTOPSIG(status);
  const int event = status >> 16;
  if (event == PTRACE_EVENT_STOP && signal != SIGTRAP && signal != SIGSTOP) {
    // stopped by a terminal's signal: stays so until SIGCONT
    ptrace(PTRACE_LISTEN, tid, nullptr, nullptr);
    return;
  }
  if (signal == kSyscallStop) countCall(tid);
  // neither an event of ptrace nor a call: a signal for the program
  if (event == 0 && signal != kSyscallStop) thread->signal = signal;
  thread->stopped = true;
  if (!freezing) resume(tid, thread);
}

static void onChildren() {
  int status;
  for (pid_t tid; (tid = waitpid(-1, &status, __WALL | WNOHANG)) > 0;) {
    if (WIFSTOPPED(status)) {
      onStop(tid, status);
      continue;
    }
    threads.erase(tid);
    if (tid == mainThread) exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
  }
  reportFrozen();
}

static void onCommand(char command) {
  if (command == 'c') {
    answer("{\"main\":" + json(mainCalls) + ",\"others\":" + json(otherCalls) + "}");
  } else if (command == 'f') {
    freezing = true;
    frozenReported = false;
    for (const auto &[tid, thread] : threads)
      if (!thread.stopped) ptrace(PTRACE_INTERRUPT, tid, nullptr, nullptr);
    reportFrozen();
  } else if (command == 't') {
    freezing = false;
    for (auto &[tid, thread] : threads)
      if (thread.stopped) resume(tid, &thread);
    answer("running");
  }
}

/* Starts the program, which is traced from its first instruction. */
static void start(char **argv) {
  int go[2];
  if (pipe(go) != 0) die("pipe");
  mainThread = fork();
  if (mainThread < 0) die("fork");
  if (mainThread == 0) {
    char byte;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    close(go[1]);
    if (read(go[0], &byte, 1) != 1) _exit(1);
    close(go[0]);
    if (dup2(2, 1) < 0 || !freopen("/dev/null", "r", stdin)) _exit(1);
    execvp(argv[0], argv);
    fprintf(stderr, "count-calls: %s: %s\n", argv[0], strerror(errno));
    _exit(127);
  }
  const auto options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL;
  if (ptrace(PTRACE_SEIZE, mainThread, nullptr, reinterpret_cast<void *>(options)) != 0) die("ptrace");
  threads[mainThread] = {};
  // the first stop, after which every call is one
  if (ptrace(PTRACE_INTERRUPT, mainThread, nullptr, nullptr) != 0) die("ptrace");
  close(go[0]);
  if (write(go[1], "g", 1) != 1) die("write");
  close(go[1]);
}

static int run(char **argv) {
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  sigprocmask(SIG_BLOCK, &child, nullptr);
  const int children = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
  if (children < 0) die("signalfd");
  start(argv);
  pollfd waits[2] = {{children, POLLIN, 0}, {0, POLLIN, 0}};
  for (;;) {
    if (poll(waits, 2, -1) < 0 && errno != EINTR) die("poll");
    if (waits[0].revents != 0) {
      signalfd_siginfo info;
      while (read(children, &info, sizeof info) > 0) continue;
      onChildren();
    }
    if (waits[1].revents == 0) continue;
    char commands[kCommandsMax];
    const ssize_t n = read(0, commands, sizeof commands);
    // the test has ended, and with this process ends the program
    if (n <= 0) return 1;
    for (ssize_t i = 0; i < n; i++) onCommand(commands[i]);
  }
}

static int probe() {
  const pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  const bool seized = child > 0 && ptrace(PTRACE_SEIZE, child, nullptr, nullptr) == 0;
  const std::string why = seized ? "ok" : std::string("ptrace: ") + strerror(errno);
  if (child > 0) {
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
  }
  // struct io_uring_params, which the headers of this machine may lack
  alignas(8) char params[kRingParamsBytes] = {};
  const long ring = syscall(SYS_io_uring_setup, kProbeEntries, params);
  answer(why + '\n' + (ring >= 0 ? "ok" : std::string("io_uring: ") + strerror(errno)));
  return 0;
}

int main(int argc, char **argv) {
  if (argc >= 2 && strcmp(argv[1], "--probe") == 0) return probe();
  if (argc < 2) {
    fprintf(stderr, "usage: count-calls PROGRAM ARGUMENT... | --probe\n");
    return 2;
  }
  return run(argv + 1);
}
