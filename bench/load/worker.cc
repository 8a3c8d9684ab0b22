#include "worker.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "messages.h"

namespace load {

static constexpr int kEventsMax = 512;
static constexpr size_t kBufferBytes = 64 * 1024;
static constexpr int kAuthOk = 0;
static constexpr int kAuthSasl = 10;
static constexpr int kAuthSaslContinue = 11;
static constexpr int kAuthSaslFinal = 12;
static const char *const kStatement = "P0";

int64_t nowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000000000 + now.tv_nsec;
}

/* Adds to an eventfd. The result does not matter: a counter that is full wakes its reader too. */
static void signalFd(int fd) {
  const uint64_t one = 1;
  if (write(fd, &one, sizeof one) < 0) return;
}

void Shared::wake() const { signalFd(wakeMain); }

void Shared::fail(const std::string &what) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (error_.empty()) error_ = what;
  }
  wake();
}

std::string Shared::error() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return error_;
}

static void raise(std::atomic<int64_t> *value, int64_t to) {
  int64_t old = value->load();
  while (old < to && !value->compare_exchange_weak(old, to)) {
  }
}

Worker::Worker(const Options &options, Shared *shared, int firstIndex, int clients, int connecting)
    : options_(options),
      shared_(shared),
      firstIndex_(firstIndex),
      connectingMax_(connecting),
      random_(static_cast<uint64_t>(firstIndex) * 7919 + 88172645463325252ull),
      clients_(static_cast<size_t>(clients)),
      buffer_(kBufferBytes) {
  epollFd_ = epoll_create1(EPOLL_CLOEXEC);
  wakeFd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  epoll_event event{};
  event.events = EPOLLIN;
  epoll_ctl(epollFd_, EPOLL_CTL_ADD, wakeFd_, &event);
  const std::string sql = options.query.empty() ? std::string("SELECT ") + kNumber : options.query;
  const std::string parameter = options.query.empty() ? kNumber : "";
  if (options.protocol == Protocol::kSimple)
    request_ = message('Q', cstring(sql));
  else if (options.protocol == Protocol::kExtended)
    request_ = parse("", sql) + bindAndExecute("", "");
  else
    request_ = bindAndExecute(kStatement, parameter);
  if (options.query.empty()) numberAt_ = request_.find(kNumber);
}

Worker::~Worker() {
  for (Client &c : clients_) {
    c.tls.reset();
    if (c.fd >= 0) close(c.fd);
  }
  close(wakeFd_);
  close(epollFd_);
}

void Worker::wake() { signalFd(wakeFd_); }

void Worker::run() {
  epoll_event events[kEventsMax];
  openMore();
  for (;;) {
    const int n = epoll_wait(epollFd_, events, kEventsMax, -1);
    now_ = nowNs();
    const Phase phase = shared_->phase.load();
    if (phase == Phase::kOver) return;
    if (phase == Phase::kLoad && !loading_) startLoad();
    for (int i = 0; i < n; i++) {
      if (events[i].data.ptr) {
        onEvent(static_cast<Client *>(events[i].data.ptr), events[i].events);
      } else {
        uint64_t count;
        if (read(wakeFd_, &count, sizeof count) < 0) continue;
      }
    }
  }
}

void Worker::fail(Client *c, const std::string &what) {
  shared_->fail("client " + std::to_string(c->index) + ": " + what);
  leave(c);
  c->state = State::kDone;
}

/* ---- connections ---- */

/* Opens as many connections as may be under way. */
void Worker::openMore() {
  while (opened_ < clients_.size() && (options_.mode == Mode::kReconnect || connecting_ < connectingMax_)) {
    Client *c = &clients_[opened_];
    c->index = firstIndex_ + static_cast<int>(opened_++);
    connecting_++;
    open(c);
  }
}

void Worker::open(Client *c) {
  if (options_.count > 0 && shared_->started.fetch_add(1) >= options_.count) {
    c->state = State::kDone;
    if (shared_->done.fetch_add(1) + 1 == options_.clients) shared_->wake();
    return;
  }
  c->headBytes = 0;
  c->bodyLeft = 0;
  c->unsent.clear();
  c->startedAt = nowNs();
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (c->fd < 0) return fail(c, std::string("socket: ") + strerror(errno));
  const int on = 1;
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  if (options_.sources > 1) {
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + static_cast<uint32_t>(c->index % options_.sources));
    if (bind(c->fd, reinterpret_cast<sockaddr *>(&address), sizeof address) < 0)
      return fail(c, std::string("bind: ") + strerror(errno));
  }
  inet_pton(AF_INET, options_.host.c_str(), &address.sin_addr);
  address.sin_port = htons(static_cast<uint16_t>(options_.port));
  c->state = State::kConnecting;
  connections++;
  if (connect(c->fd, reinterpret_cast<sockaddr *>(&address), sizeof address) < 0 && errno != EINPROGRESS) {
    const bool ports = errno == EADDRNOTAVAIL;
    return fail(c, ports ? "no local port is free: use more --sources" : std::string("connect: ") + strerror(errno));
  }
  watch(c, EPOLLOUT, true);
}

void Worker::leave(Client *c) {
  c->tls.reset();
  if (c->fd >= 0) close(c->fd);
  c->fd = -1;
}

void Worker::watch(Client *c, uint32_t events, bool add) {
  epoll_event event{};
  event.events = events;
  event.data.ptr = c;
  epoll_ctl(epollFd_, add ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, c->fd, &event);
}

void Worker::onEvent(Client *c, uint32_t events) {
  // an earlier event of this turn closed it
  if (c->fd < 0) return;
  if (c->state == State::kConnecting) return onConnected(c);
  if (events & EPOLLOUT && !c->unsent.empty()) flush(c);
  if (c->fd >= 0 && events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
}

void Worker::onConnected(Client *c) {
  int err = 0;
  socklen_t size = sizeof err;
  getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &err, &size);
  if (err != 0) return fail(c, std::string("connect: ") + strerror(err));
  watch(c, EPOLLIN, false);
  if (options_.proxy) c->unsent = proxyHeader(static_cast<uint32_t>(options_.port));
  if (!options_.tls) return sendStartup(c);
  const std::string ask = startup(kTlsRequest, "");
  c->state = State::kAskedTls;
  send(c, ask.data(), ask.size());
}

void Worker::sendStartup(Client *c) {
  c->state = State::kLogin;
  const std::string packet =
      startup(kProtocol30, cstring("user") + cstring(options_.user) + cstring("database") + cstring(options_.database) +
                               cstring("application_name") + cstring("load") + std::string(1, '\0'));
  send(c, packet.data(), packet.size());
}

void Worker::handshake(Client *c) {
  switch (c->tls->handshake()) {
    case Io::kDone:
      return sendStartup(c);
    case Io::kBlocked:
      return;
    case Io::kClosed:
      return fail(c, "the TLS handshake failed");
  }
}

/* ---- bytes ---- */

void Worker::send(Client *c, const char *bytes, size_t size) {
  c->unsent.append(bytes, size);
  flush(c);
}

void Worker::flush(Client *c) {
  const int size = static_cast<int>(c->unsent.size());
  int n = 0;
  Io io = Io::kDone;
  if (c->tls && c->state != State::kAskedTls) {
    io = c->tls->write(c->unsent.data(), size, &n);
  } else {
    n = static_cast<int>(::send(c->fd, c->unsent.data(), c->unsent.size(), MSG_NOSIGNAL));
    if (n < 0) io = errno == EAGAIN ? Io::kBlocked : Io::kClosed;
  }
  if (io == Io::kClosed) return fail(c, "the connection was closed");
  if (io == Io::kDone) c->unsent.erase(0, static_cast<size_t>(n));
  if (!c->unsent.empty()) watch(c, EPOLLIN | EPOLLOUT, false);
}

void Worker::receive(Client *c) {
  if (c->state == State::kAskedTls) {
    char answer = 0;
    if (recv(c->fd, &answer, 1, 0) != 1 || answer != 'S') return fail(c, "the pooler refused TLS");
    c->tls = std::make_unique<Tls>(c->fd);
    c->state = State::kHandshake;
    return handshake(c);
  }
  if (c->state == State::kHandshake) return handshake(c);
  const int fd = c->fd;
  do {
    int n = 0;
    Io io = Io::kDone;
    errno = 0;
    if (c->tls) {
      io = c->tls->read(buffer_.data(), static_cast<int>(buffer_.size()), &n);
    } else {
      n = static_cast<int>(recv(fd, buffer_.data(), buffer_.size(), 0));
      if (n <= 0) io = n < 0 && errno == EAGAIN ? Io::kBlocked : Io::kClosed;
    }
    if (io == Io::kBlocked) return;
    if (io == Io::kClosed) return fail(c, errno != 0 ? strerror(errno) : "the pooler closed the connection");
    if (!consume(c, buffer_.data(), static_cast<size_t>(n))) return;
  } while (c->tls && c->tls->pending());
}

/* @return false if the connection was closed meanwhile */
bool Worker::consume(Client *c, const char *bytes, size_t size) {
  const int fd = c->fd;
  while (size > 0) {
    if (c->headBytes < 5) {
      c->head[c->headBytes++] = static_cast<uint8_t>(*bytes++);
      size--;
      if (c->headBytes < 5) continue;
      uint32_t length;
      memcpy(&length, c->head + 1, sizeof length);
      c->bodyLeft = ntohl(length) - 4;
      c->body.clear();
    }
    const size_t part = size < c->bodyLeft ? size : c->bodyLeft;
    const char type = static_cast<char>(c->head[0]);
    if (type == 'R' || type == 'E') c->body.append(bytes, part);
    bytes += part;
    size -= part;
    c->bodyLeft -= static_cast<uint32_t>(part);
    if (c->bodyLeft > 0) return true;
    c->headBytes = 0;
    onMessage(c, type);
    if (c->fd != fd || c->state == State::kConnecting) return false;
  }
  return true;
}

/* ---- protocol ---- */

/* The severity and the text of an ErrorResponse. */
static std::string errorText(const std::string &body) {
  std::string severity;
  std::string text;
  for (size_t at = 0; at < body.size() && body[at] != '\0';) {
    const std::string field = body.c_str() + at + 1;
    if (body[at] == 'S') severity = field;
    if (body[at] == 'M') text = field;
    at += field.size() + 2;
  }
  return severity + ": " + text;
}

void Worker::onMessage(Client *c, char type) {
  if (type == 'E') return fail(c, errorText(c->body));
  if (type == 'R') return onAuthentication(c);
  if (type != 'Z') return;
  switch (c->state) {
    case State::kLogin:
      if (options_.protocol != Protocol::kPrepared) return onReady(c);
      {
        const std::string sql = options_.query.empty() ? "SELECT $1" : options_.query;
        const std::string packets = parse(kStatement, sql) + message('S', "");
        c->state = State::kPreparing;
        return send(c, packets.data(), packets.size());
      }
    case State::kPreparing:
      return onReady(c);
    case State::kWaiting:
      return onAnswer(c);
    default:
      return fail(c, "an answer without a request");
  }
}

void Worker::onAuthentication(Client *c) {
  uint32_t code = 0;
  if (c->body.size() >= sizeof code) memcpy(&code, c->body.data(), sizeof code);
  const std::string rest = c->body.size() > sizeof code ? c->body.substr(sizeof code) : "";
  std::string answer;
  switch (ntohl(code)) {
    case kAuthOk:
    case kAuthSaslFinal:
      return;
    case kAuthSasl: {
      if (!secureAvailable()) return fail(c, "compiled without OpenSSL, which SCRAM needs");
      const std::string first = c->scram.first(std::to_string(c->index) + '.' + std::to_string(nowNs()));
      answer = cstring("SCRAM-SHA-256") + int32(static_cast<uint32_t>(first.size())) + first;
      break;
    }
    case kAuthSaslContinue:
      answer = c->scram.final(rest, options_.password, &salted_);
      if (answer.empty()) return fail(c, "a malformed SCRAM message");
      break;
    default:
      return fail(c, "authentication method " + std::to_string(ntohl(code)) + " is not supported");
  }
  const std::string packet = message('p', answer);
  send(c, packet.data(), packet.size());
}

void Worker::onReady(Client *c) {
  c->state = State::kReady;
  connecting_--;
  if (options_.mode == Mode::kReconnect) {
    if (!options_.noQuery) return sendRequest(c);
    return onAnswer(c);
  }
  raise(&shared_->lastReadyAt, now_);
  if (shared_->ready.fetch_add(1) + 1 == options_.clients) shared_->wake();
  openMore();
}

void Worker::startLoad() {
  loading_ = true;
  if (options_.mode == Mode::kIdle || options_.mode == Mode::kReconnect) return;
  for (Client &c : clients_) {
    if (c.state != State::kReady) continue;
    c.startedAt = nowNs();
    sendRequest(&c);
  }
}

void Worker::sendRequest(Client *c) {
  if (numberAt_ != std::string::npos) {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    uint64_t value = random_;
    for (int i = 0; i < kNumberDigits - 1; i++, value /= 10) request_[numberAt_ + 1 + i] = '0' + value % 10;
  }
  c->state = State::kWaiting;
  send(c, request_.data(), request_.size());
}

void Worker::onAnswer(Client *c) {
  if (now_ >= shared_->from.load(std::memory_order_relaxed) && now_ < shared_->to.load(std::memory_order_relaxed)) {
    latencies.record(now_ - c->startedAt);
    counted++;
  }
  if (options_.mode == Mode::kReconnect) {
    static const std::string terminate = message('X', "");
    send(c, terminate.data(), terminate.size());
    leave(c);
    return open(c);
  }
  if (options_.mode == Mode::kOnce) {
    c->state = State::kDone;
    raise(&shared_->lastAnswerAt, now_);
    if (shared_->done.fetch_add(1) + 1 == options_.clients) shared_->wake();
    return;
  }
  c->startedAt = nowNs();
  sendRequest(c);
}

}  // namespace load
