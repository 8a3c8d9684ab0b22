/*
 * What a peer may not send: the record layer fails with the alert that the RFCs name, and gives no byte that was not
 * protected. The peer's records are made by a second record layer with the same keys.
 */
#include <string.h>

#include <algorithm>

#include "peers.h"

using namespace tsb;

namespace {

struct Suite {
  int version;
  uint16_t cipher;
};

const Suite kSuites[] = {
    {TLS1_3_VERSION, 0x1301}, {TLS1_3_VERSION, 0x1302}, {TLS1_3_VERSION, 0x1303}, {TLS1_3_VERSION, 0x1304},
    {TLS1_3_VERSION, 0x1305}, {TLS1_2_VERSION, 0xc02f}, {TLS1_2_VERSION, 0xc030}, {TLS1_2_VERSION, 0xcca8},
    {TLS1_2_VERSION, 0xc0ac}, {TLS1_2_VERSION, 0xc0ae},
};

/** Our end, and the peer's. */
struct Pair {
  TlsSession here;
  TlsSession there;
  TlsRecords *ours;
  TlsRecords *theirs;

  explicit Pair(const Suite &suite, bool server = true, uint64_t seed = 7) {
    Random random(seed);
    here = sessionOf(suite.version, suite.cipher, server, &random);
    there = otherEnd(here);
    ours = recordsNew(&here);
    theirs = recordsNew(&there);
    CHECK(ours != nullptr && theirs != nullptr);
  }
  Pair(const Pair &) = delete;
  ~Pair() {
    recordsFree(ours);
    recordsFree(theirs);
  }

  Opened take(const Bytes &record) { return open(ours, record).opened; }
  Opened take(uint8_t type, const Bytes &bytes) { return take(sealAs(theirs, type, bytes)); }
  void fails(uint8_t type, const Bytes &bytes, int alert) {
    CHECK(take(type, bytes) == Opened::kFailed);
    CHECK_EQUAL(int{ours->alert[1]}, alert);
    CHECK(ours->why != nullptr);
  }
};

constexpr uint8_t kAlert = SSL3_RT_ALERT, kHandshake = SSL3_RT_HANDSHAKE, kData = SSL3_RT_APPLICATION_DATA;
const Suite k13 = kSuites[0], k12 = kSuites[5];

}  // namespace

TEST(hostile_bits, "a record of which one bit has changed is refused, and so is one that comes again or too early") {
  for (const Suite &suite : kSuites) {
    Pair pair(suite);
    const Bytes first = seal(pair.theirs, {'a', 'b', 'c'});
    const Bytes second = seal(pair.theirs, {'d'});
    for (size_t bit = 0; bit < first.size() * 8; bit++) {
      Bytes changed = first;
      changed[bit / 8] = static_cast<uint8_t>(changed[bit / 8] ^ 1 << bit % 8);
      // a longer record than there is never reaches recordOpen
      if (recordLength(changed.data()) > changed.size() && recordLength(changed.data()) <= kRecordMost) continue;
      changed.resize(std::min(changed.size(), recordLength(changed.data())));
      CHECK(pair.take(changed) == Opened::kFailed);
    }
    CHECK(pair.take(second) == Opened::kFailed);
    CHECK_EQUAL(int{pair.ours->alert[1]}, SSL_AD_BAD_RECORD_MAC);
    CHECK(pair.take(first) == Opened::kData);
    CHECK(pair.take(first) == Opened::kFailed);
    CHECK(pair.take(second) == Opened::kData);
  }
}

TEST(hostile_fuzz, "of random changes to records nothing comes through") {
  for (uint64_t seed = 1; seed <= 400; seed++) {
    const Suite &suite = kSuites[seed % 10];
    Random random(seed);
    Pair pair(suite, random.oneIn(2), seed);
    for (int i = 0; i < 40; i++) {
      const Bytes data = random.bytes(random.below(random.oneIn(9) ? kTlsFragmentMost : 60) + 1);
      Bytes record = seal(pair.theirs, data);
      const Bytes whole = record;
      switch (random.below(4)) {
        case 0:
          record[random.below(record.size())] = static_cast<uint8_t>(random.next());
          break;
        case 1:
          record.resize(kRecordHeader + random.below(record.size() - kRecordHeader));
          record[3] = static_cast<uint8_t>((record.size() - kRecordHeader) >> 8);
          record[4] = static_cast<uint8_t>(record.size() - kRecordHeader);
          break;
        case 2:
          record = random.bytes(kRecordHeader + random.below(400));
          if (random.oneIn(2)) record[0] = static_cast<uint8_t>(20 + random.below(4));
          record[1] = record[2] = 3;
          record[3] = static_cast<uint8_t>((record.size() - kRecordHeader) >> 8);
          record[4] = static_cast<uint8_t>(record.size() - kRecordHeader);
          break;
      }
      if (record != whole && !(record.size() < recordLength(record.data()))) CHECK(pair.take(record) == Opened::kFailed);
      const Got got = open(pair.ours, whole);
      CHECK(got.opened == Opened::kData && got.data == data);
    }
  }
}

TEST(hostile_headers, "what a header says is checked before anything is decrypted") {
  for (const Suite &suite : kSuites) {
    Pair pair(suite);
    const bool tls13 = suite.version == TLS1_3_VERSION;
    CHECK(pair.take({24, 3, 3, 0, 40}) == Opened::kFailed);
    CHECK_EQUAL(int{pair.ours->alert[1]}, SSL_AD_UNEXPECTED_MESSAGE);
    CHECK(pair.take({23, 3, 1, 0, 40}) == Opened::kFailed);
    CHECK_EQUAL(int{pair.ours->alert[1]}, SSL_AD_PROTOCOL_VERSION);
    const size_t most = tls13 ? 16384 + 256 : 16384 + 2048;
    for (const size_t length : {most + 1, size_t{65535}}) {
      CHECK(pair.take({23, 3, 3, static_cast<uint8_t>(length >> 8), static_cast<uint8_t>(length)}) == Opened::kFailed);
      CHECK_EQUAL(int{pair.ours->alert[1]}, SSL_AD_RECORD_OVERFLOW);
    }
    for (size_t length = 0; length < 8; length++) {
      Bytes record = {23, 3, 3, 0, static_cast<uint8_t>(length)};
      record.resize(kRecordHeader + length);
      CHECK(pair.take(record) == Opened::kFailed);
      CHECK_EQUAL(int{pair.ours->alert[1]}, SSL_AD_BAD_RECORD_MAC);
    }
    // behind the handshake of TLS 1.3 every record looks like data
    if (tls13) CHECK(pair.take({21, 3, 3, 0, 2, 1, 0}) == Opened::kFailed);
  }
}

TEST(hostile_lengths, "a record has at most the bytes that were agreed on") {
  for (const Suite &suite : kSuites) {
    Pair pair(suite);
    pair.there.fragmentMost = kTlsFragmentMost + 1;
    CHECK(pair.take(seal(pair.theirs, Bytes(kTlsFragmentMost))) == Opened::kData);
    pair.fails(kData, Bytes(kTlsFragmentMost + 1), SSL_AD_RECORD_OVERFLOW);
    Pair small(suite);
    small.here.fragmentMost = 512;
    CHECK(small.take(seal(small.theirs, Bytes(512))) == Opened::kData);
    uint8_t out[recordRoom(513)];
    CHECK_EQUAL(recordSeal(small.ours, out, 513, out), 0u);
    small.fails(kData, Bytes(513), SSL_AD_RECORD_OVERFLOW);
  }
}

TEST(hostile_padding, "TLS 1.3: padding is passed over, and a record of nothing else is refused") {
  Pair pair(k13);
  // the inner type goes behind the bytes: with type 0 the last byte that is not 0 takes its place
  Bytes padded = {'x', 'y', kData};
  padded.resize(5000);
  const Got got = open(pair.ours, sealAs(pair.theirs, 0, padded));
  CHECK(got.opened == Opened::kData);
  CHECK(got.data == (Bytes{'x', 'y'}));
  pair.fails(0, Bytes(300), SSL_AD_UNEXPECTED_MESSAGE);
  Pair other(k13);
  other.fails(20, {1}, SSL_AD_UNEXPECTED_MESSAGE);
  Pair third(k13);
  third.fails(99, {1}, SSL_AD_UNEXPECTED_MESSAGE);
}

TEST(alerts, "alerts: close_notify ends the stream, harmless ones are passed over, others say what they are") {
  for (const Suite &suite : kSuites) {
    const bool tls13 = suite.version == TLS1_3_VERSION;
    Pair pair(suite);
    CHECK(pair.take(kAlert, {1, SSL_AD_USER_CANCELLED}) == Opened::kNothing);
    CHECK(pair.take(kAlert, {1, SSL_AD_NO_RENEGOTIATION}) == (tls13 ? Opened::kFailed : Opened::kNothing));
    CHECK(pair.take(kAlert, {2, SSL_AD_BAD_CERTIFICATE}) == Opened::kFailed);
    CHECK_EQUAL(std::string(pair.ours->why), std::string("bad certificate"));
    // it needs no answer
    CHECK_EQUAL(int{pair.ours->alert[0]}, 0);
    CHECK(pair.take(kAlert, {1, SSL_AD_CLOSE_NOTIFY}) == Opened::kClosed);
    for (const Bytes &bytes : {Bytes{}, Bytes{1}, Bytes{1, 0, 0}}) Pair(suite).fails(kAlert, bytes, SSL_AD_UNEXPECTED_MESSAGE);
    if (!tls13) Pair(suite).fails(kAlert, {3, 40}, SSL_AD_ILLEGAL_PARAMETER);
  }
}

TEST(renegotiation, "TLS 1.2: who asks for a new handshake gets a warning, and the connection ends") {
  for (const bool server : {true, false}) {
    Pair pair(k12, server);
    pair.fails(kHandshake, {static_cast<uint8_t>(server ? SSL3_MT_CLIENT_HELLO : SSL3_MT_HELLO_REQUEST), 0, 0, 0}, SSL_AD_NO_RENEGOTIATION);
    CHECK_EQUAL(int{pair.ours->alert[0]}, SSL3_AL_WARNING);
    CHECK_EQUAL(std::string(pair.ours->why), std::string("unexpected handshake"));
    pair.fails(kHandshake, {SSL3_MT_FINISHED, 0, 0, 0}, SSL_AD_UNEXPECTED_MESSAGE);
    CHECK_EQUAL(int{pair.ours->alert[0]}, SSL3_AL_FATAL);
    pair.fails(kHandshake, {}, SSL_AD_UNEXPECTED_MESSAGE);
    pair.fails(SSL3_RT_CHANGE_CIPHER_SPEC, {1}, SSL_AD_UNEXPECTED_MESSAGE);
  }
}

TEST(messages, "TLS 1.3: messages behind the handshake that may not come") {
  const uint8_t update = SSL3_MT_KEY_UPDATE, ticket = SSL3_MT_NEWSESSION_TICKET;
  Pair(k13).fails(kHandshake, {}, SSL_AD_UNEXPECTED_MESSAGE);
  Pair(k13).fails(kHandshake, {SSL3_MT_CLIENT_HELLO, 0, 0, 1, 0}, SSL_AD_UNEXPECTED_MESSAGE);
  Pair(k13, false).fails(kHandshake, {SSL3_MT_CERTIFICATE_REQUEST, 0, 0, 3, 0, 0, 0}, SSL_AD_UNEXPECTED_MESSAGE);
  // tickets come from servers
  Pair(k13, true).fails(kHandshake, {ticket, 0, 0, 1, 0}, SSL_AD_UNEXPECTED_MESSAGE);
  Pair(k13, false).fails(kHandshake, {ticket, 2, 1, 11}, SSL_AD_DECODE_ERROR);
  Pair(k13).fails(kHandshake, {update, 0, 0, 1, 2}, SSL_AD_ILLEGAL_PARAMETER);
  Pair(k13).fails(kHandshake, {update, 0, 0, 2, 0, 0}, SSL_AD_DECODE_ERROR);
  Pair(k13).fails(kHandshake, {update, 0, 0, 0}, SSL_AD_DECODE_ERROR);
  Pair(k13).fails(kHandshake, {update, 0, 0, 1, 0, update, 0, 0, 1, 0}, SSL_AD_UNEXPECTED_MESSAGE);
  // nothing may come between the parts of a message
  for (const uint8_t type : {kData, kAlert}) {
    Pair pair(k13);
    CHECK(pair.take(kHandshake, {update, 0, 0}) == Opened::kNothing);
    pair.fails(type, {1, 0}, SSL_AD_UNEXPECTED_MESSAGE);
  }
}

TEST(message_parts, "TLS 1.3: a message in parts is understood, also when another process goes on in the middle") {
  for (size_t part = 1; part <= 7; part++) {
    Pair pair(k13, false);
    // two tickets, one of them empty, and a key update at the end of the record
    Bytes all = {SSL3_MT_NEWSESSION_TICKET, 0, 1, 44};
    all.resize(all.size() + 300, 7);
    const Bytes rest = {SSL3_MT_NEWSESSION_TICKET, 0, 0, 0, SSL3_MT_KEY_UPDATE, 0, 0, 1, 1};
    all.insert(all.end(), rest.begin(), rest.end());
    for (size_t at = 0; at < all.size();) {
      const size_t n = std::min(all.size() - at, at < 20 || at > 295 ? part : size_t{290});
      const Bytes piece(all.begin() + static_cast<long>(at), all.begin() + static_cast<long>(at + n));
      // this is no test of the bound
      pair.here.idleRecords = 0;
      CHECK(pair.take(kHandshake, piece) == Opened::kNothing);
      at += n;
      TlsSession copy = pair.here;
      recordsFree(pair.ours);
      pair.here = copy;
      pair.ours = recordsNew(&pair.here);
    }
    CHECK_EQUAL(pair.here.keyUpdatesRead, 1u);
    CHECK(pair.here.updateAsked);
    CHECK_EQUAL(int{pair.here.partial.have}, 0);
    // the next record of the peer has its new key
    CHECK(tlsNextSecret(pair.theirs->aead, pair.there.serverSecret, pair.there.secretLength) && recordKey(pair.theirs, false));
    pair.there.recordsWritten = 0;
    CHECK(pair.take(seal(pair.theirs, {1})) == Opened::kData);
  }
}

TEST(idle, "records without data are bounded, and many requests for a key update get one answer") {
  for (const Suite &suite : kSuites) {
    Pair pair(suite);
    for (int round = 0; round < 3; round++) {
      for (uint32_t i = 0; i < kIdleRecordsMost; i++) CHECK(pair.take(seal(pair.theirs, {})) == Opened::kNothing);
      CHECK(pair.take(seal(pair.theirs, {1})) == Opened::kData);
    }
    for (uint32_t i = 0; i < kIdleRecordsMost; i++) CHECK(pair.take(kAlert, {1, SSL_AD_USER_CANCELLED}) == Opened::kNothing);
    pair.fails(kData, {}, SSL_AD_UNEXPECTED_MESSAGE);
  }
  Pair pair(k13);
  for (uint32_t i = 0; i < kIdleRecordsMost; i++) {
    // the last one asks for nothing, which takes no request back
    CHECK(pair.take(kHandshake, {SSL3_MT_KEY_UPDATE, 0, 0, 1, static_cast<uint8_t>(i + 1 < kIdleRecordsMost)}) == Opened::kNothing);
    CHECK(tlsNextSecret(pair.theirs->aead, pair.there.clientSecret, pair.there.secretLength) && recordKey(pair.theirs, false));
    pair.there.recordsWritten = 0;
  }
  const Bytes answer = seal(pair.ours, {1, 2});
  const size_t first = recordLength(answer.data());
  CHECK(open(pair.theirs, Bytes(answer.begin(), answer.begin() + static_cast<long>(first))).opened == Opened::kNothing);
  CHECK(open(pair.theirs, Bytes(answer.begin() + static_cast<long>(first), answer.end())).data == (Bytes{1, 2}));
  CHECK_EQUAL(pair.there.keyUpdatesRead, 1u);
  CHECK_EQUAL(seal(pair.ours, {1}).size(), kRecordHeader + 1 + 1 + 16);
}

TEST(numbers, "record numbers never wrap, and a key of TLS 1.3 is replaced before it has protected too much") {
  for (const Suite &suite : kSuites) {
    Pair pair(suite);
    const bool tls13 = suite.version == TLS1_3_VERSION;
    pair.here.recordsWritten = pair.there.recordsRead = kRecordsPerKey - 1;
    CHECK(open(pair.theirs, seal(pair.ours, {1})).opened == Opened::kData);
    const Bytes next = seal(pair.ours, {1});
    CHECK_EQUAL(recordLength(next.data()) < next.size(), tls13);
    CHECK_EQUAL(pair.here.keyUpdatesWritten, tls13 ? 1u : 0u);
    CHECK_EQUAL(pair.here.recordsWritten, tls13 ? 1u : kRecordsPerKey + 1);
    pair.here.recordsWritten = UINT64_MAX;
    uint8_t out[recordRoom(1)];
    CHECK_EQUAL(recordSeal(pair.ours, out, 1, out), 0u);
    static const uint8_t alert[] = {1, 0};
    CHECK_EQUAL(recordSealAlert(pair.ours, alert, out), 0u);
    const Bytes record = seal(pair.theirs, {1});
    pair.here.recordsRead = UINT64_MAX;
    CHECK(pair.take(record) == Opened::kFailed);
  }
}
