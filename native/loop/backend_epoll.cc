/*
 * The libuv backend: life of the loop, the wait, signals and wake-ups. It has a private uv_loop_t, because Node's own
 * loop never turns again once the program's loop has begun. Signals and name lookups are libuv's; its set is one member
 * of ours, and the sockets are watched directly, since libuv offers no edges.
 */
#include "loop/stream.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <new>

namespace tsb {

/** Events that one wait takes from the kernel. */
constexpr int kEventsMax = 1024;

static void onWake(UvLoop *l) {
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
  uv_async_init(&l->uv, &l->alive, nullptr);
  l->epollFd = epoll_create1(EPOLL_CLOEXEC);
  // members that are not slots are known by addresses that no slot has
  epoll_event wake = {EPOLLIN, {&l->wakeFd}};
  epoll_event uv = {EPOLLIN, {&l->uv}};
  if (l->epollFd < 0 || epoll_ctl(l->epollFd, EPOLL_CTL_ADD, l->wakeFd, &wake) < 0 ||
      epoll_ctl(l->epollFd, EPOLL_CTL_ADD, uv_backend_fd(&l->uv), &uv) < 0) {
    *err = -errno;
    close(l->wakeFd);
    delete l;  // only when the kernel is out of memory at start: libuv's loop is not worth unwinding then
    return nullptr;
  }
  uv_run(&l->uv, UV_RUN_NOWAIT);
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
  close(l->wakeFd);
  close(l->epollFd);
  uv_close(reinterpret_cast<uv_handle_t *>(&l->alive), nullptr);
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
  ioReuse(l);
  ioDeliverPending(l);
  const bool block = timeoutMs != 0 && turn->count == 0 && !l->breakAsked && l->pending.empty();
  l->breakAsked = false;
  epoll_event events[kEventsMax];
  const int n = epoll_wait(l->epollFd, events, kEventsMax, block ? timeoutMs : 0);
  for (int i = 0; i < n; i++) {
    void *member = events[i].data.ptr;
    if (member == &l->wakeFd)
      onWake(l);
    else if (member == &l->uv)
      uv_run(&l->uv, UV_RUN_NOWAIT);
    else
      ioEvent(static_cast<Slot *>(member), events[i].events);
  }
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
  // registers it: libuv tells the kernel only when its loop turns
  uv_run(&l->uv, UV_RUN_NOWAIT);
  return 0;
}

const LoopOps kLoopUv = {
    "libuv",      create,      destroy,      wait,          breakWait,    wakeFd,   signalStart,  ioOpen,
    ioConnect,    ioListenOpen, ioListenStart, ioWatchFd,   ioFdOf,       ioClose,  ioDetach,     ioRecvStart,
    ioRecvStop,   ioEnded,     ioRecvStopAll, ioRecvLimit, ioKeep,       ioKeptLength, ioTakeKept, ioSend,      ioUnsent,
    ioTakeUnsent, ioTlsStart,  ioTlsOf,      lookupStart,   lookupFound,  lookupEnd,
};

}  // namespace tsb
