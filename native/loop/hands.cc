/* Threads that move bytes. See hands.h. */
#include "loop/hands.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <new>

namespace tsb {

/**
 * Most rounds of waiting before a thread sleeps, some 10 microseconds: sleeping and being woken cost as much. Threads spin
 * only if each can have a processor of its own; else they would delay what they wait for.
 */
constexpr int kSpins = 300;
/** One of so many waits may have all these rounds, to find out whether waiting pays. */
constexpr unsigned kTrial = 32;
/** After so many forks the processors are counted again: the set of those that the process may use can change. */
constexpr unsigned kForksOfCount = 1 << 16;
constexpr size_t kStackSize = 256 * 1024;

static inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

template <typename Ready>
bool Patience::wait(int most, Ready ready) {
  const int rounds = waits_++ % kTrial == 0 || rounds_ > most ? most : rounds_;
  for (int i = 0; i < rounds; i++) {
    if (ready()) {
      if (rounds_ < 2 * i + 1) rounds_ = 2 * i + 1;
      return true;
    }
    relax();
  }
  rounds_ -= (rounds_ + 3) / 4;
  return false;
}

static void futexWait(std::atomic<uint32_t> *word, uint32_t seen) {
  syscall(SYS_futex, reinterpret_cast<uint32_t *>(word), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}

static void futexWake(std::atomic<uint32_t> *word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t *>(word), FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
}

static int processors() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

/* ---- life ---- */

bool Hands::startThread(int index, int *err) {
  Hand *hand = &hands_[index];
  hand->all = this;
  hand->index = index;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStackSize);
  const int failed = pthread_create(&hand->thread, &attributes, run, hand);
  pthread_attr_destroy(&attributes);
  *err = -failed;
  if (failed != 0) return false;
  char name[16];
  snprintf(name, sizeof(name), "io-%d", index + 1);
  pthread_setname_np(hand->thread, name);
  started_++;
  return true;
}

Hands *Hands::start(int count, int *err) {
  *err = -ENOMEM;
  std::unique_ptr<Hands> hands(new (std::nothrow) Hands(count));
  if (hands) hands->hands_.reset(new (std::nothrow) Hand[static_cast<size_t>(count)]);
  if (!hands || !hands->hands_) return nullptr;
  // threads inherit the mask: signals are for the thread that calls wait()
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  bool started = true;
  for (int i = 0; i < count && started; i++) started = hands->startThread(i, err);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return started ? hands.release() : nullptr;
}

Hands::~Hands() {
  ending_ = true;
  for (int i = 0; i < started_; i++) {
    hands_[i].given.fetch_add(1);
    futexWake(&hands_[i].given);
    pthread_join(hands_[i].thread, nullptr);
  }
}

double Hands::cpuUsec(int hand) const {
  clockid_t clock;
  return pthread_getcpuclockid(hands_[hand].thread, &clock) == 0 ? clockUsec(clock) : 0;
}

/* ---- fork and join ---- */

/*
 * Both sides go to sleep in the same way: they say that they sleep, look once more, and let the kernel compare the word
 * again. The other side changes the word first, and then looks whether the first one sleeps.
 */

void *Hands::run(void *data) {
  Hand *hand = static_cast<Hand *>(data);
  hand->all->work(hand);
  return nullptr;
}

void Hands::work(Hand *hand) {
  for (uint32_t done = 0;; done++) {
    hand->patience.wait(spins_.load(std::memory_order_relaxed),
                        [hand, done] { return hand->given.load(std::memory_order_acquire) != done; });
    while (hand->given.load() == done) {
      hand->sleeping.store(true);
      if (hand->given.load() == done) futexWait(&hand->given, done);
      hand->sleeping.store(false);
    }
    if (ending_) return;
    job_(context_, hand->index);
    hand->jobs++;
    if (left_.fetch_sub(1) == 1 && joining_.load()) futexWake(&left_);
  }
}

void Hands::fork(uint64_t which, Job job, void *context) {
  if (forks_++ % kForksOfCount == 0) spins_.store(processors() > count_ ? kSpins : 0, std::memory_order_relaxed);
  job_ = job;
  context_ = context;
  left_.store(static_cast<uint32_t>(__builtin_popcountll(which)));
  for (; which != 0; which &= which - 1) {
    Hand *hand = &hands_[__builtin_ctzll(which)];
    hand->given.fetch_add(1);
    if (hand->sleeping.load()) futexWake(&hand->given);
  }
}

void Hands::join() {
  patience_.wait(spins_.load(std::memory_order_relaxed), [this] { return left_.load(std::memory_order_acquire) == 0; });
  for (uint32_t left = left_.load(); left > 0; left = left_.load()) {
    joining_.store(true);
    left = left_.load();
    if (left > 0) futexWait(&left_, left);
    joining_.store(false);
  }
}

}  // namespace tsb
