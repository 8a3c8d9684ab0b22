/*
 * TLS handshakes in threads of their own. A step of a handshake takes as long as hundreds of queries, so many logins at
 * once would delay connected clients.
 *
 * While a thread works on a connection it alone touches the TlsConn. The stream is `away`: nothing is received for it. What
 * the step sends is collected, and the loop takes it with the result.
 */
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <vector>

#include "bytes.h"
#include "tls/tls.h"

namespace tsb {

struct Stream;

/** One step of a handshake. */
struct Handshake {
  TlsConn *conn;
  /** null when the stream has been closed meanwhile; only the loop's thread uses it */
  Stream *stream;
  /** the stream has been closed: the step is not worth its time */
  std::atomic<bool> abandoned{false};
  /** the connection is back; only the loop's threads use it */
  bool done = false;
  /** as tlsHandshake() returns it */
  int result = 0;
  /** records for the peer */
  Bytes out;
};

class Handshakes {
 public:
  /** What a thread has done. */
  struct Use {
    uint64_t steps;
    double cpuUsec;
  };

  /** `count` threads are started with the first step. They write to `doneFd`, an eventfd, when a step is done. */
  Handshakes(int count, int doneFd) : count_(count), doneFd_(doneFd) {}
  /** Waits for the steps that have begun, and frees the connections of all. */
  ~Handshakes();
  Handshakes(const Handshakes &) = delete;
  Handshakes &operator=(const Handshakes &) = delete;

  /** Hands a connection over for one step. Any lane's thread may call it. Returns false when no thread can be started. */
  bool begin(Handshake *step);
  /** Steps that are done; those of closed streams are freed. Called by the loop's thread. */
  std::vector<Handshake *> take();
  /** Of each thread; empty before the first step. */
  std::vector<Use> use();

 private:
  struct Thread {
    Handshakes *all;
    pthread_t id;
    uint64_t steps;
  };

  static void *run(void *thread);
  void work(Thread *self);
  bool startThreads();

  const int count_;
  const int doneFd_;
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t more_ = PTHREAD_COND_INITIALIZER;
  /* guarded by mutex_ */
  std::deque<Thread> threads_;
  std::deque<Handshake *> waiting_;
  std::vector<Handshake *> done_;
  bool ending_ = false;

  /** done_ is not empty, or may be */
  std::atomic<bool> any_{false};
};

/** Frees a step and its connection. */
void handshakeFree(Handshake *step);

}  // namespace tsb
