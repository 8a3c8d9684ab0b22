/*
 * The libuv backend: life of the loop, the wait, signals and wake-ups. It runs a private uv_loop_t, because Node's own
 * loop never turns again once the program's loop has begun.
 */
#include "loop_uv.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <new>

namespace tsb {

static void onBound(uv_timer_t *timer) { static_cast<UvLoop *>(timer->data)->timedOut = true; }

static void onWake(uv_poll_t *poll, int, int) {
  UvLoop *l = static_cast<UvLoop *>(poll->data);
  uint64_t count;
  // another thread may drain it never, only this one: one read empties an eventfd
  if (read(l->wakeFd, &count, sizeof(count)) == static_cast<ssize_t>(sizeof(count)))
    l->turn->add(kWake, 0, 0, 0);
}

static void onSignal(uv_signal_t *signal, int signum) {
  static_cast<UvLoop *>(signal->data)->turn->add(kSignal, signum, 0, 0);
}

static Loop *create(Turn *turn, int recvMax, int *err) {
  UvLoop *l = new (std::nothrow) UvLoop();
  if (!l) {
    *err = -ENOMEM;
    return nullptr;
  }
  l->ops = &kLoopUv;
  l->turn = turn;
  l->recvMax = recvMax;
  l->slots.push_back(nullptr);
  l->wakeFd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (l->wakeFd < 0) {
    *err = -errno;
    delete l;
    return nullptr;
  }
  if ((*err = uv_loop_init(&l->uv)) < 0) {
    close(l->wakeFd);
    delete l;
    return nullptr;
  }
  uv_timer_init(&l->uv, &l->bound);
  l->bound.data = l;
  l->wakePoll.data = l;
  if ((*err = uv_poll_init(&l->uv, &l->wakePoll, l->wakeFd)) < 0 ||
      (*err = uv_poll_start(&l->wakePoll, UV_READABLE, onWake)) < 0) {
    close(l->wakeFd);
    delete l;  // only when the kernel is out of memory at start: libuv's loop is not worth unwinding then
    return nullptr;
  }
  return l;
}

static void onSignalClosed(uv_handle_t *handle) { delete reinterpret_cast<uv_signal_t *>(handle); }

/* Also runs when a worker's environment goes away, so everything must really be released. */
static void destroy(Loop *loop) {
  UvLoop *l = uvLoop(loop);
  for (size_t handle = 1; handle < l->slots.size(); handle++) {
    Slot *slot = l->slots[handle];
    if (!slotLive(slot)) continue;
    if (slot->kind == SlotKind::kWatch)
      ioDetach(l, slot->handle);
    else
      ioClose(l, slot->handle);
  }
  for (int signum = 0; signum < kSignalsMax; signum++)
    if (l->signals[signum]) uv_close(reinterpret_cast<uv_handle_t *>(l->signals[signum]), onSignalClosed);
  uv_close(reinterpret_cast<uv_handle_t *>(&l->wakePoll), nullptr);
  close(l->wakeFd);
  uv_close(reinterpret_cast<uv_handle_t *>(&l->bound), nullptr);
  std::vector<int> ids;
  for (const auto &entry : l->lookups) ids.push_back(entry.first);
  for (int id : ids) lookupEnd(l, id);
  uv_run(&l->uv, UV_RUN_NOWAIT);
  uv_run(&l->uv, UV_RUN_NOWAIT);
  // A lookup that a pool thread is still busy with writes into this loop later: then the memory is left to the end of
  // the process, which is better than waiting for a name server here.
  if (uv_loop_close(&l->uv) < 0) return;
  for (Slot *slot : l->slots) delete slot;
  delete l;
}

static int wait(Loop *loop, int timeoutMs) {
  UvLoop *l = uvLoop(loop);
  Turn *turn = l->turn;
  turn->begin();
  l->turnNumber++;
  ioDeliverPending(l);
  const bool block = timeoutMs != 0 && turn->count == 0 && !l->breakAsked;
  l->breakAsked = false;
  if (!block) {
    uv_run(&l->uv, UV_RUN_NOWAIT);
    return turn->count;
  }
  l->timedOut = false;
  if (timeoutMs > 0) {
    uv_update_time(&l->uv);
    uv_timer_start(&l->bound, onBound, static_cast<uint64_t>(timeoutMs), 0);
  } else {
    uv_timer_stop(&l->bound);
  }
  // libuv also returns for its own reasons (a handle closed, a write that went on without finishing): the caller has
  // nothing to do then. Every event without a record makes progress or is no longer watched, so this does not spin.
  do uv_run(&l->uv, UV_RUN_ONCE);
  while (turn->count == 0 && !l->timedOut && !l->breakAsked);
  return turn->count;
}

static void breakWait(Loop *loop) { uvLoop(loop)->breakAsked = true; }

static int wakeFd(Loop *loop) { return uvLoop(loop)->wakeFd; }

/* libuv installs its handler over whatever Node had, the inspector's SIGUSR1 included. */
static int signalStart(Loop *loop, int signum) {
  UvLoop *l = uvLoop(loop);
  if (signum <= 0 || signum >= kSignalsMax) return -EINVAL;
  if (l->signals[signum]) return 0;
  uv_signal_t *signal = new (std::nothrow) uv_signal_t();
  if (!signal) return -ENOMEM;
  int err = uv_signal_init(&l->uv, signal);
  if (err < 0) {
    delete signal;
    return err;
  }
  signal->data = l;
  err = uv_signal_start(signal, onSignal, signum);
  if (err < 0) {
    uv_close(reinterpret_cast<uv_handle_t *>(signal), onSignalClosed);
    return err;
  }
  l->signals[signum] = signal;
  return 0;
}

const LoopOps kLoopUv = {
    "libuv",      create,      destroy,      wait,          breakWait,    wakeFd,   signalStart,  ioOpen,
    ioConnect,    ioListenOpen, ioListenStart, ioWatchFd,   ioFdOf,       ioClose,  ioDetach,     ioRecvStart,
    ioRecvStop,   ioKeep,      ioKeptLength, ioTakeKept,    ioSend,       ioUnsent, ioTakeUnsent, ioTlsStart,
    ioTlsOf,      lookupStart, lookupFound,  lookupEnd,
};

}  // namespace tsb
