/*
 * The record layer against OpenSSL, over all suites: one end of a connection that OpenSSL made is continued by ours, the other
 * stays OpenSSL's. Records of any length go both ways, keys are updated at any moment, and the continued end is continued
 * again, each time from a copy of its session.
 */
#include <openssl/err.h>
#include <string.h>

#include <algorithm>

#include "peers.h"

using namespace tsb;

namespace {

/** One continued connection. */
class Continued {
 public:
  Continued(const Ends &ends, bool server, Random *random) : random_(random), peer_(server ? ends.client : ends.server) {
    session_ = server ? ends.session : otherEnd(ends.session);
    session_.nextNonce = random->next();
    again();
    // OpenSSL pads, and makes records of any length
    SSL_set_block_padding(peer_, random->oneIn(2) ? 1 + random->below(500) : 0);
    SSL_set_max_send_fragment(peer_, 512 + random->below(kTlsFragmentMost - 512 + 1));
  }
  ~Continued() { recordsFree(records_); }

  void step() {
    const bool tls13 = session_.version == TLS1_3_VERSION;
    switch (random_->below(tls13 ? 9 : 5)) {
      case 0:
      case 1:
        return write();
      case 2:
      case 3:
        return read();
      case 4:
        return again();
      case 5:
        return updateOfPeer(SSL_KEY_UPDATE_REQUESTED);
      case 6:
        return updateOfPeer(SSL_KEY_UPDATE_NOT_REQUESTED);
      case 7:
        // as when the key has protected enough
        records_->recordsPerKey = session_.recordsWritten;
        return;
      case 8:
        return ticketOfPeer();
    }
  }

  void write() {
    const Bytes data = random_->bytes(length());
    const uint32_t updates = session_.keyUpdatesWritten;
    const bool due = session_.updateAsked || session_.recordsWritten >= records_->recordsPerKey;
    Ends::receive(peer_, seal(records_, data));
    CHECK_EQUAL(session_.keyUpdatesWritten, updates + (session_.version == TLS1_3_VERSION && due ? 1 : 0));
    records_->recordsPerKey = kRecordsPerKey;
    Bytes got(data.size() + 1);
    size_t have = 0;
    while (have < data.size()) {
      const int n = SSL_read(peer_, got.data() + have, static_cast<int>(got.size() - have));
      if (n <= 0) ERR_print_errors_fp(stderr);
      CHECK(n > 0);
      have += static_cast<size_t>(n);
    }
    CHECK(data.empty() || memcmp(got.data(), data.data(), data.size()) == 0);
    CHECK_EQUAL(SSL_read(peer_, got.data(), 1), -1);
    CHECK_EQUAL(SSL_get_error(peer_, -1), SSL_ERROR_WANT_READ);
  }

  void read() {
    const Bytes data = random_->bytes(1 + length());
    CHECK_EQUAL(SSL_write(peer_, data.data(), static_cast<int>(data.size())), static_cast<int>(data.size()));
    CHECK(received() == data);
  }

  void close() {
    SSL_shutdown(peer_);
    const Bytes record = Ends::written(peer_);
    CHECK(open(records_, record).opened == Opened::kClosed);
    static const uint8_t alert[] = {SSL3_AL_WARNING, SSL_AD_CLOSE_NOTIFY};
    Bytes out(recordRoom(2));
    out.resize(recordSealAlert(records_, alert, out.data()));
    Ends::receive(peer_, out);
    CHECK_EQUAL(SSL_shutdown(peer_), 1);
  }

 private:
  Random *random_;
  SSL *peer_;
  TlsSession session_;
  TlsRecords *records_ = nullptr;

  /** Short, long and limits. */
  size_t length() {
    static const size_t special[] = {0, 1, 15, 16, 17, 255, 256, 4096, kTlsFragmentMost - 1, kTlsFragmentMost};
    if (random_->oneIn(3)) return special[random_->below(10)];
    return random_->below(random_->oneIn(2) ? 100 : kTlsFragmentMost + 1);
  }

  /** What the peer has written, opened. */
  Bytes received() {
    Bytes data;
    const Bytes wire = Ends::written(peer_);
    for (size_t at = 0; at < wire.size();) {
      const size_t n = recordLength(wire.data() + at);
      CHECK(at + n <= wire.size());
      const Got got = open(records_, Bytes(wire.begin() + static_cast<long>(at), wire.begin() + static_cast<long>(at + n)));
      if (got.opened == Opened::kFailed) fprintf(stderr, "%s\n", records_->why);
      CHECK(got.opened == Opened::kData || got.opened == Opened::kNothing);
      data.insert(data.end(), got.data.begin(), got.data.end());
      at += n;
    }
    return data;
  }

  /** The next process. */
  void again() {
    TlsSession copy = session_;
    if (records_) recordsFree(records_);
    memset(&session_, 0xee, sizeof(session_));
    session_ = copy;
    records_ = recordsNew(&session_);
    CHECK(records_ != nullptr);
  }

  void updateOfPeer(int kind) {
    const uint32_t updates = session_.keyUpdatesRead;
    CHECK_EQUAL(SSL_key_update(peer_, kind), 1);
    CHECK_EQUAL(SSL_do_handshake(peer_), 1);
    CHECK(received().empty());
    CHECK_EQUAL(session_.keyUpdatesRead, updates + 1);
    CHECK_EQUAL(session_.recordsRead, 0u);
    if (kind == SSL_KEY_UPDATE_REQUESTED) CHECK(session_.updateAsked);
    // 32 records in a row without data are too many
    if (session_.idleRecords > kIdleRecordsMost / 2) read();
  }

  void ticketOfPeer() {
    if (session_.server) return;
    CHECK_EQUAL(SSL_new_session_ticket(peer_), 1);
    CHECK_EQUAL(SSL_do_handshake(peer_), 1);
    CHECK(received().empty());
    if (session_.idleRecords > kIdleRecordsMost / 2) read();
  }
};

}  // namespace

static void run(int version, const char *suite, bool server, uint64_t seed, int steps, bool *had) {
  Ends ends;
  if (!ends.connect(version, suite)) return;
  *had = true;
  Random random(seed);
  Continued continued(ends, server, &random);
  continued.write();
  continued.read();
  for (int i = 0; i < steps; i++) continued.step();
  continued.close();
}

static void runAll(int version, uint64_t seeds, int steps, size_t least) {
  size_t had = 0;
  for (const std::string &suite : knownSuites(version)) {
    bool one = false;
    for (uint64_t seed = 1; seed <= seeds; seed++) run(version, suite.c_str(), seed % 2 == 0, seed, steps, &one);
    if (one) had++;
  }
  CHECK(had >= least);
}

TEST(property_13, "TLS 1.3: ours and OpenSSL's records are the same, for every suite and with key updates at any moment") {
  runAll(TLS1_3_VERSION, 16, 150, 5);
}

TEST(property_12, "TLS 1.2: ours and OpenSSL's records are the same, for every suite with an AEAD") {
  runAll(TLS1_2_VERSION, 2, 100, 16);
}

/** Every length, both ways, ours at both ends; OpenSSL agrees with some of them above. */
static void everyLength(int version, uint16_t cipher) {
  Random random(cipher);
  TlsSession here = sessionOf(version, cipher, true, &random);
  TlsSession there = otherEnd(here);
  TlsRecords *ours = recordsNew(&here);
  TlsRecords *theirs = recordsNew(&there);
  const Bytes all = random.bytes(kTlsFragmentMost);
  for (size_t length = 0; length <= kTlsFragmentMost; length += length < 300 || length > kTlsFragmentMost - 20 ? 1 : 61) {
    const Bytes data(all.begin(), all.begin() + static_cast<long>(length));
    const Got got = open(theirs, seal(ours, data));
    CHECK(got.opened == (length > 0 ? Opened::kData : Opened::kNothing));
    CHECK(got.data == data);
    const Got back = open(ours, seal(theirs, data));
    CHECK(back.data == data);
  }
  recordsFree(ours);
  recordsFree(theirs);
}

TEST(every_length, "records of every length, for every AEAD") {
  for (uint16_t cipher = 0x1301; cipher <= 0x1305; cipher++) everyLength(TLS1_3_VERSION, cipher);
  for (const uint16_t cipher : {0xc02b, 0xc030, 0xcca8, 0xc0ac, 0xc0ad, 0xc0ae, 0xc0af}) everyLength(TLS1_2_VERSION, cipher);
}
