/* Known answers: RFC 8448 for TLS 1.3, NIST's vectors of SP 800-135 for the keys of TLS 1.2. */
#include <string.h>

#include "peers.h"

using namespace tsb;

static void put(uint8_t *into, const char *text) {
  const Bytes bytes = hex(text);
  memcpy(into, bytes.data(), bytes.size());
}

/** RFC 8448, section 3, after the handshake. */
static TlsSession sessionOfRfc8448(bool server) {
  TlsSession session = {};
  session.version = TLS1_3_VERSION;
  session.cipher = 0x1301;
  session.server = server;
  session.secretLength = 32;
  session.fragmentMost = kTlsFragmentMost;
  put(session.clientSecret, "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5");
  put(session.serverSecret, "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643");
  return session;
}

static const char *const kTicket =
    "17 03 03 00 de 3a 6b 8f 90 41 4a 97 d6 95 9c 34 87 68 0d e5 13 4a 2b 24 0e 6c ff ac 11 6e 95 d4 1d"
    "6a f8 f6 b5 80 dc f3 d1 1d 63 c7 58 db 28 9a 01 59 40 25 2f 55 71 3e 06 1d c1 3e 07 88 91 a3 8e fb"
    "cf 57 53 ad 8e f1 70 ad 3c 73 53 d1 6d 9d a7 73 b9 ca 7f 2b 9f a1 b6 c0 d4 a3 d0 3f 75 e0 9c 30 ba"
    "1e 62 97 2a c4 6f 75 f7 b9 81 be 63 43 9b 29 99 ce 13 06 46 15 13 98 91 d5 e4 c5 b4 06 f1 6e 3f c1"
    "81 a7 7c a4 75 84 00 25 db 2f 0a 77 f8 1b 5a b0 5b 94 c0 13 46 75 5f 69 23 2c 86 51 9d 86 cb ee ac"
    "87 aa c3 47 d1 43 f9 60 5d 64 f6 50 db 4d 02 3e 70 e9 52 ca 49 fe 51 37 12 1c 74 bc 26 97 68 7e 24"
    "87 46 d6 df 35 30 05 f3 bc e1 86 96 12 9c 81 53 55 6b 3b 6c 67 79 b3 7b f1 59 85 68 4f";
static const char *const kOfClient =
    "17 03 03 00 43 a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab 3f 2b"
    "98 19 a8 a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd 1e 3d ea e6 3a ee"
    "bb 21 69 49 15 e4";
static const char *const kOfServer =
    "17 03 03 00 43 2e 93 7e 11 ef 4a c7 40 e5 38 ad 36 00 5f c4 a4 69 32 fc 32 25 d0 5f 82 aa 1b 36 e3"
    "0e fa f9 7d 90 e6 df fc 60 2d cb 50 1a 59 a8 fc c4 9c 4b f2 e5 f0 a2 1c 00 47 c2 ab f3 32 54 0d d0"
    "32 e1 67 c2 95 5d";
static const char *const kAlertOfClient = "17 03 03 00 13 c9 87 27 60 65 56 66 b7 4d 7f f1 15 3e fd 6d b6 d0 b0 e3";
static const char *const kAlertOfServer = "17 03 03 00 13 b5 8f d6 71 66 eb f5 99 d2 47 20 cf be 7e fa 7a 88 64 a9";

static Bytes payload() {
  Bytes bytes;
  for (uint8_t i = 0; i < 50; i++) bytes.push_back(i);
  return bytes;
}

static std::string sealedAlert(TlsRecords *records) {
  static const uint8_t alert[] = {SSL3_AL_WARNING, SSL_AD_CLOSE_NOTIFY};
  uint8_t out[recordRoom(2)];
  return hexOf(out, recordSealAlert(records, alert, out));
}

TEST(rfc8448_client, "RFC 8448: what the client of section 3 writes and reads") {
  TlsSession session = sessionOfRfc8448(false);
  TlsRecords *records = recordsNew(&session);
  CHECK(records != nullptr);
  CHECK(open(records, hex(kTicket)).opened == Opened::kNothing);
  CHECK_EQUAL(hexOf(seal(records, payload())), hexOf(hex(kOfClient)));
  const Got got = open(records, hex(kOfServer));
  CHECK(got.opened == Opened::kData);
  CHECK(got.data == payload());
  CHECK_EQUAL(sealedAlert(records), hexOf(hex(kAlertOfClient)));
  CHECK(open(records, hex(kAlertOfServer)).opened == Opened::kClosed);
  CHECK_EQUAL(session.recordsRead, 3u);
  CHECK_EQUAL(session.recordsWritten, 2u);
  recordsFree(records);
}

TEST(rfc8448_server, "RFC 8448: what the server of section 3 writes and reads") {
  TlsSession session = sessionOfRfc8448(true);
  // its first record was the ticket
  session.recordsWritten = 1;
  TlsRecords *records = recordsNew(&session);
  const Got got = open(records, hex(kOfClient));
  CHECK(got.opened == Opened::kData);
  CHECK(got.data == payload());
  CHECK_EQUAL(hexOf(seal(records, payload())), hexOf(hex(kOfServer)));
  CHECK(open(records, hex(kAlertOfClient)).opened == Opened::kClosed);
  CHECK_EQUAL(sealedAlert(records), hexOf(hex(kAlertOfServer)));
  recordsFree(records);
}

struct BlockVector {
  uint16_t cipher;
  const char *serverRandom;
  const char *clientRandom;
  const char *master;
  /** client key, server key, client IV, server IV of the key block */
  const char *parts[4];
};

static const BlockVector kVectors[] = {
    {0xc02f,
     "ae6c806f8ad4d80784549dff28a4b58fd837681a51d928c3e30ee5ff14f39868",
     "62e1fd91f23f558a605f28478c58cf72637b89784d959df7e946d3f07bd1b616",
     "202c88c00f84a17a20027079604787461176455539e705be730890602c289a5001e34eeb3a043e5d52a65e66125188bf",
     {"d06139889fffac1e3a71865f504aa5d0", "d2a2e89506c6f2279b670c3e1b74f531", "016a2530", "c51a3a0f"}},
    {0xcca8,
     "ae6c806f8ad4d80784549dff28a4b58fd837681a51d928c3e30ee5ff14f39868",
     "62e1fd91f23f558a605f28478c58cf72637b89784d959df7e946d3f07bd1b616",
     "202c88c00f84a17a20027079604787461176455539e705be730890602c289a5001e34eeb3a043e5d52a65e66125188bf",
     {"d06139889fffac1e3a71865f504aa5d0d2a2e89506c6f2279b670c3e1b74f531",
      "016a2530c51a3a0f7e1d6590d0f0566b2f387f8d11fd4f731cdd572d2eae927f", "6f2f81410b25e6960be68985", "add6c38445ad9f8c64bf8068"}},
    {0xc030,
     "1b1c8568344a65c30828e7483c0e353e2c68641c9551efae6927d9cd627a107c",
     "954b5fe1849c2ede177438261f099a2fcd884d001b9fe1de754364b1f6a6dd8e",
     "b4d49bfa87747fe815457bc3da15073d6ac73389e703079a3503c09e14bd559a5b3c7c601c7365f6ea8c68d3d9596827",
     {"10fd89ef689c7ef033387b8a8f3e5e8e7c11f680f6bdd71fbac3246a73e98d45",
      "d03185dde686e6b2369e4503e9dc5a6d2cee3e2bf2fa3f41d3de57dff3e197c8", "a9d5f74c", "c2d27711"}},
};

TEST(nist_key_block, "NIST: the key block of TLS 1.2, with SHA-256 and SHA-384") {
  for (const BlockVector &vector : kVectors) {
    TlsSession session = {};
    session.version = TLS1_2_VERSION;
    put(session.serverRandom, vector.serverRandom);
    put(session.clientRandom, vector.clientRandom);
    put(session.masterSecret, vector.master);
    session.masterLength = 48;
    const TlsAead *aead = tlsAeadOf(TLS1_2_VERSION, vector.cipher);
    for (const bool ofServer : {false, true}) {
      TlsKey key = {};
      CHECK(tlsBlockKey(aead, session, ofServer, &key));
      CHECK_EQUAL(hexOf(key.key, aead->keyLength), std::string(vector.parts[ofServer]));
      CHECK_EQUAL(hexOf(key.iv, kTlsNonceSize - aead->explicitLength), std::string(vector.parts[2 + ofServer]));
    }
  }
}

TEST(refusals, "a session that cannot be continued says why") {
  Random random(1);
  TlsSession session = sessionOf(TLS1_3_VERSION, 0x1301, true, &random);
  CHECK(recordRefusal(session) == nullptr);
  session.secretLength = 0;
  CHECK_EQUAL(std::string(recordRefusal(session)), std::string("secrets not known"));
  // ECDHE-RSA-AES128-SHA: CBC
  session = sessionOf(TLS1_2_VERSION, 0xc02f, true, &random);
  session.cipher = 0xc013;
  CHECK_EQUAL(std::string(recordRefusal(session)), std::string("cipher suite without AEAD"));
  session.version = TLS1_1_VERSION;
  CHECK_EQUAL(std::string(recordRefusal(session)), std::string("TLS older than 1.2"));
  CHECK(recordsNew(&session) == nullptr);
}
