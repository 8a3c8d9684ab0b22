/*
 * Threads that move bytes, while the thread that calls wait() waits for them. They hold no JavaScript, take no signals and
 * know neither lanes nor streams: fork() gives each a job, join() waits until all have done it. Between join() and the next
 * fork() they touch nothing, so that what they work on needs no lock.
 */
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <memory>

#include "loop/turn.h"

namespace tsb {

/** How long a thread waits before it sleeps: as long as waiting has paid lately. Each thread has its own. */
class Patience {
 public:
  /** Waits for at most so many rounds. Returns whether `ready` has become true. */
  template <typename Ready>
  bool wait(int most, Ready ready);

 private:
  int rounds_ = 0;
  unsigned waits_ = 0;
};

class Hands {
 public:
  /** `hand` is from 0. */
  using Job = void (*)(void *context, int hand);

  /** Starts so many threads, at most kHandsMost. Returns null with *err = -errno. */
  static Hands *start(int count, int *err);
  /** Ends the threads. */
  ~Hands();
  Hands(const Hands &) = delete;
  Hands &operator=(const Hands &) = delete;

  int count() const { return count_; }
  /** Starts job(context, i) in hand i for each bit i of `which`. join() must follow. */
  void fork(uint64_t which, Job job, void *context);
  /** Returns when the job is done everywhere. */
  void join();

  /** How often a hand was given a job. */
  uint64_t jobs(int hand) const { return hands_[hand].jobs; }
  /** CPU time of a hand in microseconds. */
  double cpuUsec(int hand) const;

 private:
  struct alignas(64) Hand {
    /** counts the jobs that were given; a futex */
    std::atomic<uint32_t> given{0};
    std::atomic<bool> sleeping{false};
    uint64_t jobs = 0;
    Patience patience;
    pthread_t thread{};
    Hands *all = nullptr;
    int index = 0;
  };

  explicit Hands(int count) : count_(count) {}
  static void *run(void *hand);
  void work(Hand *hand);
  bool startThread(int index, int *err);

  const int count_;
  int started_ = 0;
  /** most rounds of waiting before a thread sleeps */
  std::atomic<int> spins_{0};
  /** of join() */
  Patience patience_;
  unsigned forks_ = 0;
  bool ending_ = false;
  Job job_ = nullptr;
  void *context_ = nullptr;
  /** hands that have not done the job yet; a futex */
  alignas(64) std::atomic<uint32_t> left_{0};
  std::atomic<bool> joining_{false};
  std::unique_ptr<Hand[]> hands_;
};

}  // namespace tsb
