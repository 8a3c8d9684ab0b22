/*
 * The benchmark's load generator: many clients of a pooler, in one or a few threads, and the latency of every request.
 * bench/generator.ts compiles and runs it. Reports on stdout in lines of JSON: {"event":"connected"} when all clients have logged
 * in, {"event":"begin"} and {"event":"end"} around the measured period, and {"event":"result",...} at the end. SIGTERM
 * ends the period early.
 */
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "worker.h"

using namespace load;

/** Connections from one address to one port: fewer than net.ipv4.ip_local_port_range has. */
static constexpr int kClientsPerSource = 20'000;
/** Connections that were closed keep their port for a while. */
static constexpr int kSourcesReconnecting = 16;
static constexpr int kSpareDescriptors = 64;
/** A thread that works more than this share of the period may have been what limited the throughput. */
static constexpr double kBusy = 0.9;
/** The limit for waits that only the pooler can end: until all clients are connected, or have one answer. */
static constexpr double kWaitSecondsMax = 300;
static constexpr int64_t kNsPerSecond = 1'000'000'000;

static volatile sig_atomic_t stopped = 0;
static int wakeFd = -1;

[[noreturn]] static void die(const std::string &what) {
  fprintf(stderr, "load: %s\n", what.c_str());
  _exit(1);
}

static void onTerm(int) {
  stopped = 1;
  const uint64_t one = 1;
  if (write(wakeFd, &one, sizeof one) < 0) return;
}

static double numberOf(const char *name, const char *text, double least) {
  char *end = nullptr;
  const double value = strtod(text, &end);
  if (*text == '\0' || *end != '\0' || !(value >= least)) die(std::string("--") + name + ": not a valid number: " + text);
  return value;
}

static Protocol protocolOf(const std::string &text) {
  if (text == "simple") return Protocol::kSimple;
  if (text == "extended") return Protocol::kExtended;
  if (text == "prepared") return Protocol::kPrepared;
  die("--protocol is simple, extended or prepared");
}

static Mode modeOf(const std::string &text) {
  if (text == "run") return Mode::kRun;
  if (text == "once") return Mode::kOnce;
  if (text == "idle") return Mode::kIdle;
  if (text == "reconnect") return Mode::kReconnect;
  die("--mode is run, once, idle or reconnect");
}

static Options parseOptions(int argc, char **argv) {
  static const option known[] = {
      {"host", 1, nullptr, 'h'},     {"port", 1, nullptr, 'p'},    {"user", 1, nullptr, 'U'},
      {"database", 1, nullptr, 'd'}, {"clients", 1, nullptr, 'c'}, {"threads", 1, nullptr, 'j'},
      {"connecting", 1, nullptr, 'n'}, {"sources", 1, nullptr, 's'}, {"seconds", 1, nullptr, 'T'},
      {"warm-up", 1, nullptr, 'w'},  {"count", 1, nullptr, 't'},   {"query", 1, nullptr, 'q'},
      {"protocol", 1, nullptr, 'M'}, {"mode", 1, nullptr, 'm'},    {"tls", 0, nullptr, 'S'},
      {"no-query", 0, nullptr, 'N'}, {"proxy", 0, nullptr, 'P'},   {"has-tls", 0, nullptr, 'H'},
      {nullptr, 0, nullptr, 0},
  };
  Options o;
  int at = 0;
  for (int c; (c = getopt_long(argc, argv, "", known, &at)) != -1;) {
    const auto number = [&](double least) { return numberOf(known[at].name, optarg, least); };
    switch (c) {
      case 'h': o.host = optarg; break;
      case 'p': o.port = static_cast<int>(number(1)); break;
      case 'U': o.user = optarg; break;
      case 'd': o.database = optarg; break;
      case 'c': o.clients = static_cast<int>(number(1)); break;
      case 'j': o.threads = static_cast<int>(number(1)); break;
      case 'n': o.connecting = static_cast<int>(number(1)); break;
      case 's': o.sources = static_cast<int>(number(0)); break;
      case 'T': o.seconds = number(0); break;
      case 'w': o.warmUp = number(0); break;
      case 't': o.count = static_cast<int64_t>(number(0)); break;
      case 'q': o.query = optarg; break;
      case 'M': o.protocol = protocolOf(optarg); break;
      case 'm': o.mode = modeOf(optarg); break;
      case 'S': o.tls = true; break;
      case 'N': o.noQuery = true; break;
      case 'P': o.proxy = true; break;
      case 'H': puts(secureAvailable() ? "yes" : "no"); exit(0);
      default: exit(2);
    }
  }
  if (const char *password = getenv("PGPASSWORD")) o.password = password;
  if (o.port == 0) die("--port is missing");
  if (o.tls && !secureAvailable()) die("compiled without OpenSSL, which --tls needs");
  if (o.count > 0 && o.mode != Mode::kReconnect) die("--count needs --mode reconnect");
  o.threads = std::min(o.threads, o.clients);
  return o;
}

/* Several source addresses exist only on the loopback interface. */
static void chooseSources(Options *o) {
  if (o->sources > 0) return;
  const bool loopback = o->host.compare(0, 4, "127.") == 0;
  const int wanted = o->mode == Mode::kReconnect ? kSourcesReconnecting : o->clients / kClientsPerSource + 1;
  o->sources = loopback ? wanted : 1;
}

static void raiseDescriptors(int clients) {
  rlimit files;
  const auto needed = static_cast<rlim_t>(clients + kSpareDescriptors);
  if (getrlimit(RLIMIT_NOFILE, &files) != 0 || files.rlim_cur >= needed) return;
  files.rlim_cur = files.rlim_max;
  if (files.rlim_max < needed || setrlimit(RLIMIT_NOFILE, &files) != 0)
    die(std::to_string(clients) + " clients need " + std::to_string(needed) + " descriptors, but ulimit -Hn is " +
        std::to_string(files.rlim_max));
}

/** The run as the main thread sees it. */
struct Run {
  const Options &options;
  Shared shared;
  std::vector<std::unique_ptr<Worker>> workers;
  std::vector<std::thread> threads;
  int64_t startedAt = 0;
  int64_t loadAt = 0;
  double windowSeconds = 0;
  /** CPU of each thread in the period, ns; before its end minus the CPU before its begin */
  std::vector<int64_t> cpu;
};

static void event(const char *name) {
  printf("{\"event\":\"%s\"}\n", name);
  fflush(stdout);
}

static void stopWorkers(Run *run) {
  run->shared.phase = Phase::kOver;
  for (auto &worker : run->workers) worker->wake();
  for (auto &thread : run->threads) thread.join();
}

static int64_t threadCpu(std::thread *thread) {
  clockid_t clock;
  timespec time{};
  if (pthread_getcpuclockid(thread->native_handle(), &clock) == 0) clock_gettime(clock, &time);
  return static_cast<int64_t>(time.tv_sec) * kNsPerSecond + time.tv_nsec;
}

/* Waits until the condition holds, the deadline has passed, or SIGTERM came. Ends the program after an error. */
template <typename Condition>
static void waitFor(Run *run, int64_t deadline, Condition condition) {
  for (;;) {
    const std::string error = run->shared.error();
    if (!error.empty()) die(error);
    if (stopped || condition()) return;
    const int64_t left = deadline - nowNs();
    if (left <= 0) return;
    pollfd wait{wakeFd, POLLIN, 0};
    const int64_t ms = left / 1'000'000 + 1;
    poll(&wait, 1, static_cast<int>(std::min<int64_t>(ms, 60'000)));
    uint64_t count;
    if (wait.revents != 0 && read(wakeFd, &count, sizeof count) < 0) continue;
  }
}

static int64_t after(double seconds) { return nowNs() + static_cast<int64_t>(seconds * 1e9); }

static void startThreads(Run *run) {
  const Options &o = run->options;
  int first = 0;
  for (int i = 0; i < o.threads; i++) {
    const int clients = o.clients / o.threads + (i < o.clients % o.threads ? 1 : 0);
    run->workers.push_back(
        std::make_unique<Worker>(o, &run->shared, first, clients, std::max(1, o.connecting / o.threads)));
    first += clients;
  }
  run->startedAt = nowNs();
  for (auto &worker : run->workers) run->threads.emplace_back(&Worker::run, worker.get());
}

static void startLoad(Run *run) {
  run->loadAt = nowNs();
  run->shared.phase = Phase::kLoad;
  for (auto &worker : run->workers) worker->wake();
}

static void measure(Run *run) {
  const Options &o = run->options;
  const bool counting = o.mode == Mode::kOnce || o.count > 0;
  // what ends by itself is measured from its first request
  if (counting) run->shared.from = 0;
  startLoad(run);
  if (!counting) {
    waitFor(run, after(o.warmUp), [] { return false; });
    run->shared.from = nowNs();
  }
  const int64_t begin = nowNs();
  for (auto &thread : run->threads) run->cpu.push_back(threadCpu(&thread));
  event("begin");
  waitFor(run, after(counting ? kWaitSecondsMax : o.seconds), [&] { return counting && run->shared.done == o.clients; });
  if (counting && !stopped && run->shared.done != o.clients) die("not all answers came in time");
  const int64_t end = nowNs();
  run->shared.to = end;
  event("end");
  for (size_t i = 0; i < run->threads.size(); i++) run->cpu[i] = threadCpu(&run->threads[i]) - run->cpu[i];
  run->windowSeconds = static_cast<double>(end - begin) / 1e9;
}

static void report(const Run &run) {
  const Options &o = run.options;
  Histogram all;
  uint64_t counted = 0;
  uint64_t connections = 0;
  for (const auto &worker : run.workers) {
    all.add(worker->latencies);
    counted += worker->counted;
    connections += worker->connections;
  }
  int64_t cpu = 0;
  int64_t busiest = 0;
  for (const int64_t each : run.cpu) {
    cpu += each;
    busiest = std::max(busiest, each);
  }
  const double seconds = run.windowSeconds;
  const double share = seconds > 0 ? static_cast<double>(busiest) / 1e9 / seconds : 0;
  const auto since = [](int64_t from, const std::atomic<int64_t> &to) {
    return to > from ? static_cast<double>(to - from) / 1e9 : 0;
  };
  printf("{\"event\":\"result\",\"clients\":%d,\"transactions\":%" PRIu64 ",\"seconds\":%.6f,\"perSecond\":%.1f,", o.clients,
         counted, seconds, seconds > 0 ? static_cast<double>(counted) / seconds : 0);
  printf("\"latencyUs\":{\"mean\":%.1f,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"p999\":%.1f,\"max\":%.1f},", all.meanUs(),
         all.quantileUs(0.5), all.quantileUs(0.9), all.quantileUs(0.99), all.quantileUs(0.999), all.maxUs());
  printf("\"connections\":%" PRIu64 ",\"connectSeconds\":%.6f,\"onceSeconds\":%.6f,", connections,
         since(run.startedAt, run.shared.lastReadyAt), since(run.loadAt, run.shared.lastAnswerAt));
  printf("\"cpuUsPerTransaction\":%.3f,\"busiestThread\":%.3f,\"limit\":%s}\n",
         counted > 0 ? static_cast<double>(cpu) / 1e3 / static_cast<double>(counted) : 0, share,
         share > kBusy ? "true" : "false");
  fflush(stdout);
}

int main(int argc, char **argv) {
  Options options = parseOptions(argc, argv);
  chooseSources(&options);
  raiseDescriptors(options.clients);
  wakeFd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  signal(SIGPIPE, SIG_IGN);
  struct sigaction action{};
  action.sa_handler = onTerm;
  sigaction(SIGTERM, &action, nullptr);
  Run run{options, {}, {}, {}, 0, 0, 0, {}};
  run.shared.wakeMain = wakeFd;
  startThreads(&run);
  if (options.mode != Mode::kReconnect) {
    waitFor(&run, after(kWaitSecondsMax), [&] { return run.shared.ready == options.clients; });
    if (run.shared.ready != options.clients)
      die("only " + std::to_string(run.shared.ready) + " of " + std::to_string(options.clients) + " clients could log in");
    event("connected");
  }
  if (options.mode == Mode::kIdle)
    waitFor(&run, after(options.seconds), [] { return false; });
  else
    measure(&run);
  stopWorkers(&run);
  report(run);
  return 0;
}
