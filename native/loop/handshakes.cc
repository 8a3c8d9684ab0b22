/* TLS handshakes in threads of their own. See handshakes.h. */
#include "loop/handshakes.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "loop/turn.h"

namespace tsb {

void handshakeFree(Handshake *step) {
  tlsConnFree(step->conn);
  step->out.clear();
  delete step;
}

/* ---- in the threads ---- */

static int collect(void *context, const uint8_t *bytes, size_t length) {
  return static_cast<Handshake *>(context)->out.append(bytes, length) ? 0 : -ENOMEM;
}

void Handshakes::work(Thread *self) {
  TlsPool pool;
  pthread_mutex_lock(&mutex_);
  while (!ending_) {
    if (waiting_.empty()) {
      pthread_cond_wait(&more_, &mutex_);
      continue;
    }
    Handshake *step = waiting_.front();
    waiting_.pop_front();
    pthread_mutex_unlock(&mutex_);
    if (!step->abandoned.load(std::memory_order_relaxed)) {
      tlsConnAttach(step->conn, {collect, step}, &pool);
      step->result = tlsHandshake(step->conn);
    }
    // the pool ends with this thread
    tlsConnAttach(step->conn, {collect, step}, nullptr);
    pthread_mutex_lock(&mutex_);
    self->steps++;
    const bool first = done_.empty();
    done_.push_back(step);
    any_.store(true);
    const uint64_t one = 1;
    // an eventfd takes 2^64 - 2 of them
    if (first && write(doneFd_, &one, sizeof(one)) < 0) continue;
  }
  pthread_mutex_unlock(&mutex_);
}

void *Handshakes::run(void *data) {
  Thread *thread = static_cast<Thread *>(data);
  thread->all->work(thread);
  return nullptr;
}

/* ---- in the loop ---- */

bool Handshakes::startThreads() {
  // threads inherit the mask: signals are for the thread that calls wait()
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (int i = 0; i < count_; i++) {
    threads_.push_back({this, pthread_t(), 0});
    Thread *thread = &threads_.back();
    if (pthread_create(&thread->id, nullptr, run, thread) != 0) {
      threads_.pop_back();
      break;
    }
    char name[16];
    snprintf(name, sizeof(name), "tls-%d", i + 1);
    pthread_setname_np(thread->id, name);
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return !threads_.empty();
}

bool Handshakes::begin(Handshake *step) {
  pthread_mutex_lock(&mutex_);
  const bool started = !threads_.empty() || startThreads();
  if (started) waiting_.push_back(step);
  pthread_cond_signal(&more_);
  pthread_mutex_unlock(&mutex_);
  return started;
}

std::vector<Handshake *> Handshakes::take() {
  std::vector<Handshake *> done;
  if (!any_.load()) return done;
  pthread_mutex_lock(&mutex_);
  done.swap(done_);
  any_.store(false);
  pthread_mutex_unlock(&mutex_);
  std::vector<Handshake *> live;
  for (Handshake *step : done) {
    if (step->stream)
      live.push_back(step);
    else
      handshakeFree(step);
  }
  return live;
}

std::vector<Handshakes::Use> Handshakes::use() {
  std::vector<Use> all;
  pthread_mutex_lock(&mutex_);
  for (const Thread &thread : threads_) {
    clockid_t clock;
    const bool known = pthread_getcpuclockid(thread.id, &clock) == 0;
    all.push_back({thread.steps, known ? clockUsec(clock) : 0});
  }
  pthread_mutex_unlock(&mutex_);
  return all;
}

Handshakes::~Handshakes() {
  pthread_mutex_lock(&mutex_);
  ending_ = true;
  pthread_cond_broadcast(&more_);
  pthread_mutex_unlock(&mutex_);
  for (const Thread &thread : threads_) pthread_join(thread.id, nullptr);
  for (Handshake *step : waiting_) handshakeFree(step);
  for (Handshake *step : done_) handshakeFree(step);
}

}  // namespace tsb
