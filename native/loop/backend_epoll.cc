/*
 * The epoll backend: the kernel reports readiness, and this part does the receiving, sending, connecting and accepting.
 *
 * Most of a pooler's cost is system calls and the kernel's work for each event. A connection is therefore
 * registered once, for edges of both directions: stopping, starting and blocked sends cost no call, and the kernel does not
 * look again at descriptors it has reported. The price is that an edge must be remembered (readable, ending) until the
 * socket is seen empty: nothing announces it twice. Listeners and watches are registered by level.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <new>

#include "loop/ready.h"
#include "loop/stream.h"
#include "plainio.h"

namespace tsb {

/** Events that one wait takes from the kernel. */
constexpr int kEventsMax = 1024;
constexpr uint32_t kBroken = EPOLLHUP | EPOLLERR;

/**
 * With fewer streams to work on than this, the thread that calls wait() does the work of the hands itself: waking one costs
 * as much as a few system calls.
 */
constexpr size_t kForkLeast = 4;

struct EpollLane : Lane {
  std::vector<epoll_event> events;
};

struct EpollLoop : Loop {
  int epollFd;
};

static EpollLoop *epollLoop(Loop *loop) { return static_cast<EpollLoop *>(loop); }
static EpollLane *epollLane(Lane *lane) { return static_cast<EpollLane *>(lane); }

/* ---- registration ---- */

static uint32_t wantedEvents(const Stream *s) {
  if (s->kind == StreamKind::kConnection) return EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  return s->reading ? EPOLLIN : 0u;
}

/** Tells the kernel what is wanted, if that has changed. Returns 0 or -errno. */
static int watch(Stream *s) {
  const uint32_t wanted = wantedEvents(s);
  if (wanted == s->epoll.armed) return 0;
  epoll_event event = {wanted, {s}};
  const int op = wanted == 0 ? EPOLL_CTL_DEL : EPOLL_CTL_ADD;
  // what cannot be removed is not there, and nothing is lost
  if (epoll_ctl(epollLoop(s->streams->loop)->epollFd, op, s->fd, &event) < 0 && wanted != 0) return -errno;
  s->epoll.armed = wanted;
  return 0;
}

static void watchOrFail(Stream *s) {
  const int err = watch(s);
  if (err < 0) streamFailed(s, err);
}

/* ---- receiving ---- */

/** True when a receive is due that no event announces. */
static bool due(const Stream *s) { return streamWants(s) && (s->epoll.readable || streamHasInput(s)); }

static ssize_t receiveBytes(Stream *s, const Place &place) {
  const ssize_t n = readyRecv(s, place);
  if (n == -EAGAIN) s->ending = false;
  // less than asked for: the socket is empty, and the next byte is an edge; but nothing announces the end again
  if (n <= 0 || (static_cast<size_t>(n) < place.most && !s->ending)) s->epoll.readable = false;
  return n;
}

static int receive(Loop *, Stream *s, bool on) {
  if (!on) return 0;
  if (s->kind == StreamKind::kConnection && due(s)) streamQueueReceive(s);
  return watch(s);
}

/* ---- sending ---- */

static void drain(Loop *, Stream *s) { watchOrFail(s); }

/* ---- connecting ---- */

static void connect(Loop *, Stream *s, const sockaddr *addr, socklen_t length) {
  if (readyConnectStart(s, addr, length)) watchOrFail(s);
}

/* ---- a turn ---- */

static void onConnection(Stream *s, uint32_t events) {
  if (events & (EPOLLIN | EPOLLRDHUP | kBroken)) s->epoll.readable = true;
  if (events & (EPOLLRDHUP | kBroken)) s->ending = true;
  if (s->connecting) {
    if (s->connectEnded || !(events & (EPOLLOUT | kBroken))) return;
    readyConnect(s);
  }
  if (events & (EPOLLOUT | kBroken)) readySend(s);
  // a stream in the queue has its place there
  if (s->receiveDue) return;
  if (due(s)) readyReceive<receiveBytes>(s);
  if (due(s)) streamQueueReceive(s);
}

static void onEvent(Stream *s, uint32_t events) {
  switch (s->kind) {
    case StreamKind::kConnection:
      onConnection(s, events);
      break;
    case StreamKind::kListener:
      if (s->reading) readyAccept(s);
      break;
    case StreamKind::kWatch:
      streamReadable(s);
      break;
    case StreamKind::kFree:
    case StreamKind::kClosing:
      return;
  }
  watchOrFail(s);
}

static bool work(Stream *s) {
  if (!readyWork<due, receiveBytes>(s)) return false;
  watchOrFail(s);
  return true;
}

/* ---- lanes ---- */

static size_t queuedOf(const Lane *lane) { return lane->outbox.streams.size() + lane->due.size(); }
static size_t eventsOf(const Lane *lane) { return static_cast<const EpollLane *>(lane)->events.size(); }
static size_t workOf(const Lane *lane) { return queuedOf(lane) + eventsOf(lane); }

static void workQueued(Lane *lane) {
  outboxFlushAll(&lane->outbox);
  laneDeliver(lane, work);
  // TLS has answered its peers
  outboxFlushAll(&lane->outbox);
}

static void workEvents(Lane *lane) {
  std::vector<epoll_event> &events = epollLane(lane)->events;
  for (const epoll_event &event : events) onEvent(static_cast<Stream *>(event.data.ptr), event.events);
  events.clear();
}

static void workAll(Lane *lane) {
  workQueued(lane);
  workEvents(lane);
}

static void takeEvents(EpollLoop *l, int timeoutMs) {
  epoll_event events[kEventsMax];
  const int n = epoll_wait(l->epollFd, events, kEventsMax, timeoutMs);
  for (int i = 0; i < n; i++) epollLane(static_cast<Stream *>(events[i].data.ptr)->lane)->events.push_back(events[i]);
}

/** Calls work(lane) for each lane that has something to do, in its hand if that is enough work to wake hands for. */
template <size_t (*Amount)(const Lane *lane), void (*Work)(Lane *lane)>
static void workLanes(EpollLoop *l) {
  const auto busy = [](const Lane *lane) { return Amount(lane) > 0; };
  size_t ofHands = 0;
  for (size_t i = 1; i < l->lanes.size(); i++) ofHands += Amount(l->lanes[i]);
  if (l->duty.on && ofHands >= kForkLeast) {
    lanesWork(l, busy, Work);
    return;
  }
  for (Lane *lane : l->lanes)
    if (busy(lane)) Work(lane);
}

static bool anyDue(const EpollLoop *l) {
  for (const Lane *lane : l->lanes)
    if (!lane->due.empty()) return true;
  return false;
}

/** Sends and delivers what is queued. Returns true when hands did, and have handled events as well. */
static bool forkQueued(EpollLoop *l) {
  size_t queued = 0;
  for (size_t i = 1; i < l->lanes.size(); i++) queued += queuedOf(l->lanes[i]);
  if (!l->duty.on || queued < kForkLeast) return false;
  takeEvents(l, 0);
  workLanes<workOf, workAll>(l);
  return true;
}

static int wait(Loop *loop, int timeoutMs) {
  EpollLoop *l = epollLoop(loop);
  turnBegin(l);
  const bool forked = forkQueued(l);
  if (!forked) workLanes<queuedOf, workQueued>(l);
  if (!forked || l->turn->count() == 0) {
    const bool block = timeoutMs != 0 && l->turn->count() == 0 && !l->breakRequested && !anyDue(l);
    takeEvents(l, block ? timeoutMs : 0);
    workLanes<eventsOf, workEvents>(l);
  }
  l->breakRequested = false;
  return l->turn->join();
}

/* ---- life ---- */

static void destroy(Loop *loop) {
  EpollLoop *l = epollLoop(loop);
  delete l->hands;
  if (l->epollFd >= 0) close(l->epollFd);
  for (Lane *lane : l->lanes) delete epollLane(lane);
  delete l;
}

static Loop *create(Turn *turn, const LoopOptions &options, int *err) {
  *err = -ENOMEM;
  EpollLoop *l = new (std::nothrow) EpollLoop();
  if (!l) return nullptr;
  l->ops = &kLoopEpoll;
  l->turn = turn;
  l->options = options;
  l->wakeFd = -1;
  for (int i = 0; i <= options.hands; i++) laneAdd(l, new EpollLane());
  l->epollFd = epoll_create1(EPOLL_CLOEXEC);
  *err = l->epollFd < 0 ? -errno : 0;
  if (*err == 0 && options.hands > 0) l->hands = Hands::start(options.hands, err);
  if (*err == 0) return l;
  destroy(l);
  return nullptr;
}

/* The kernel is told at the first receive(): many refusals of a descriptor then become its first record. */
static int attach(Loop *loop, Stream *s) {
  laneJoin(loop, s, true);
  return 0;
}

/* By name: the descriptor may live on in another process, and then closing it here does not remove it. */
static void detach(Loop *loop, Stream *s, bool) {
  laneLeave(s);
  if (s->epoll.armed) epoll_ctl(epollLoop(loop)->epollFd, EPOLL_CTL_DEL, s->fd, nullptr);
}

/* Nothing is under way between two waits: receives and sends are done when their call returns. */
static void quiesce(Loop *) {}
static void rest(Loop *, Stream *) {}

const LoopOps kLoopEpoll = {
    "epoll", create, destroy, attach, detach, connect, receive, drain, rest, quiesce, wait,
};

}  // namespace tsb
