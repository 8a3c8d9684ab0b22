/*
 * One thread of the load generator with its share of the clients. Each client has at most one request under way.
 */
#pragma once

#include <netinet/in.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "histogram.h"
#include "secure.h"

namespace load {

enum class Protocol { kSimple, kExtended, kPrepared };
/** run: requests for a period; once: one request of each client; idle: only logins; reconnect: a login per request */
enum class Mode { kRun, kOnce, kIdle, kReconnect };

struct Options {
  std::string host = "127.0.0.1";
  int port = 0;
  std::string user = "postgres";
  std::string database = "postgres";
  std::string password;
  int clients = 1;
  int threads = 1;
  /** logins under way at a time, over all threads; not in mode reconnect */
  int connecting = 100;
  /** source addresses, 127.0.0.2 and following; 0 = as many as the number of clients needs */
  int sources = 0;
  double seconds = 4;
  double warmUp = 0.5;
  /** mode reconnect: end after that many transactions; 0 = after `seconds` */
  int64_t count = 0;
  /** instead of SELECT with a random number */
  std::string query;
  /** mode reconnect: log in and leave without a request */
  bool noQuery = false;
  bool tls = false;
  /** each connection begins with a header of the PROXY protocol, as behind a load balancer */
  bool proxy = false;
  Protocol protocol = Protocol::kSimple;
  Mode mode = Mode::kRun;
};

enum class Phase { kConnect, kLoad, kOver };

/** What all threads share. The main thread writes the phase and the period, the workers the rest. */
struct Shared {
  std::atomic<Phase> phase{Phase::kConnect};
  /** requests answered in this period are counted; ns */
  std::atomic<int64_t> from{INT64_MAX};
  std::atomic<int64_t> to{INT64_MAX};
  std::atomic<int> ready{0};
  std::atomic<int64_t> lastReadyAt{0};
  /** clients that have nothing more to do */
  std::atomic<int> done{0};
  std::atomic<int64_t> lastAnswerAt{0};
  std::atomic<int64_t> started{0};
  /** written to wake the main thread */
  int wakeMain = -1;

  void wake() const;
  /** Keeps the first error and wakes the main thread. */
  void fail(const std::string &what);
  std::string error();

 private:
  std::mutex mutex_;
  std::string error_;
};

int64_t nowNs();

enum class State { kConnecting, kAskedTls, kHandshake, kLogin, kPreparing, kReady, kWaiting, kDone };

struct Client {
  int fd = -1;
  int index = 0;
  State state = State::kDone;
  /** when the request, or in mode reconnect the connection, was started; ns */
  int64_t startedAt = 0;
  /** the message being received: its head so far, and how much of its body is missing */
  uint8_t head[5];
  int headBytes = 0;
  uint32_t bodyLeft = 0;
  /** of messages whose contents matter */
  std::string body;
  /** bytes that the kernel has not accepted yet */
  std::string unsent;
  std::unique_ptr<Tls> tls;
  Scram scram;
};

class Worker {
 public:
  Worker(const Options &options, Shared *shared, int firstIndex, int clients, int connecting);
  ~Worker();
  /** The thread's body: ends when the phase is kOver. */
  void run();
  /** Interrupts the wait after a change of the phase. */
  void wake();
  Histogram latencies;
  /** requests in the period, which counts `latencies` too */
  uint64_t counted = 0;
  uint64_t connections = 0;

 private:
  void openMore();
  void open(Client *c);
  void leave(Client *c);
  void watch(Client *c, uint32_t events, bool add);
  void onEvent(Client *c, uint32_t events);
  void onConnected(Client *c);
  void receive(Client *c);
  void handshake(Client *c);
  bool consume(Client *c, const char *bytes, size_t size);
  void onMessage(Client *c, char type);
  void onAuthentication(Client *c);
  void onReady(Client *c);
  void onAnswer(Client *c);
  void sendStartup(Client *c);
  void sendRequest(Client *c);
  void send(Client *c, const char *bytes, size_t size);
  void flush(Client *c);
  void startLoad();
  void fail(Client *c, const std::string &what);

  const Options &options_;
  Shared *shared_;
  int firstIndex_;
  int connectingMax_;
  int connecting_ = 0;
  size_t opened_ = 0;
  bool loading_ = false;
  int epollFd_ = -1;
  int wakeFd_ = -1;
  /** the time at which the current events were received; ns */
  int64_t now_ = 0;
  uint64_t random_;
  std::vector<Client> clients_;
  std::string request_;
  /** where the random number is in request_; npos: there is none */
  size_t numberAt_ = std::string::npos;
  SaltedPasswords salted_;
  std::vector<char> buffer_;
};

}  // namespace load
