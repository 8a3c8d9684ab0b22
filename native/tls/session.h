/*
 * The state of an established TLS connection, in a form that another process can continue: plain values, no OpenSSL
 * objects. It is complete between two records. tls/record.h continues a connection from it, and keeps it current.
 */
#pragma once

#include <cstddef>
#include <cstdint>

namespace tsb {

constexpr size_t kTlsRandomSize = 32;
/** Room for every secret: those of SHA-384, the longest hash of TLS 1.3, and TLS 1.2 master secrets have 48 bytes. */
constexpr size_t kTlsSecretMax = 64;
/** Most bytes in one record (RFC 8446, 5.1), unless the two ends have agreed on fewer. */
constexpr size_t kTlsFragmentMost = 1 << 14;

/** A handshake message that has arrived in part, because it began in an earlier record (TLS 1.3). */
struct TlsPartialMessage {
  /** type and length; `have` of these bytes have arrived */
  uint8_t header[4];
  uint8_t have;
  /** bytes behind the header that are still to come, once that is complete */
  uint32_t left;
};

/**
 * What another process needs, besides the socket and the buffered bytes, to continue the connection. The secrets begin as
 * the keylog callback gave them.
 */
struct TlsSession {
  /** TLS1_2_VERSION and so on; 0 until the handshake is done */
  int version;
  /** the two bytes of the suite, as in the protocol */
  uint16_t cipher;
  bool server;
  /** TLS 1.2 and older: keys follow from these three */
  uint8_t clientRandom[kTlsRandomSize];
  uint8_t serverRandom[kTlsRandomSize];
  uint8_t masterSecret[kTlsSecretMax];
  size_t masterLength;
  /** TLS 1.3: the present application traffic secrets; a key update replaces one of them */
  uint8_t clientSecret[kTlsSecretMax];
  uint8_t serverSecret[kTlsSecretMax];
  size_t secretLength;
  uint32_t keyUpdatesRead;
  uint32_t keyUpdatesWritten;
  /** the sequence number of the next record with the present key, each way */
  uint64_t recordsRead;
  uint64_t recordsWritten;
  /** TLS 1.2 with GCM or CCM: the explicit part of the nonce of the next record to write */
  uint64_t nextNonce;
  /** most bytes in one record, each way: kTlsFragmentMost or what max_fragment_length agreed on */
  size_t fragmentMost;
  TlsPartialMessage partial;
  /** records in a row that brought no data */
  uint32_t idleRecords;
  /** the peer asked for a key update, which goes before the next data */
  bool updateAsked;
};

}  // namespace tsb
