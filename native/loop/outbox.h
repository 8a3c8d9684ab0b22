/*
 * What is to be sent in the next wait. Sends are queued during a turn and leave together: several pieces for one peer
 * cost one system call, and a completion backend submits all of them in the call that waits. Bytes of the arena are
 * queued by reference, because the arena does not change until the next wait has sent them; other bytes are copied.
 *
 * What the kernel does not take goes to Stream::unsent. While a stream has unsent bytes its outbox is empty: later bytes
 * are appended there.
 *
 * On a TLS connection the bytes are queued as they are, and encrypted when they leave: by the thread that sends them, and
 * small pieces as one record.
 */
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tsb {

struct Stream;

/** Most pieces of one stream; one more sends them all at once. */
constexpr int kPiecesMost = 16;
/** Longer bytes are sent at once rather than copied. */
constexpr size_t kCopyMost = 16 * 1024;

struct OutPiece {
  const uint8_t *bytes;
  size_t length;
  /** index of the stream's next piece; -1 = none */
  int next;
  /** to be encrypted */
  bool plain;
};

/** Memory for copies of one turn. It never moves, because pieces point into it. */
class Copies {
 public:
  ~Copies();
  /** Returns null when there are too many already, or memory is exhausted. length <= kCopyMost. */
  uint8_t *take(size_t length);
  /** Everything taken is free again. */
  void reset();

 private:
  std::vector<uint8_t *> chunks_;
  size_t chunk_ = 0;
  size_t used_ = 0;
};

/** Of one lane. */
struct Outbox {
  std::vector<OutPiece> pieces;
  /** the streams that have pieces, in the order of their first ones; some may have been emptied since */
  std::vector<Stream *> streams;
  /** how many of them have pieces; when it becomes 0, the memory of the pieces is free again */
  size_t filled = 0;
  Copies copies;
};

/** The part of a stream. */
struct OutboxPart {
  /** bytes of all pieces */
  size_t length = 0;
  /** indexes of the first and the last piece; -1 = none */
  int first = -1;
  int last = -1;
  int16_t count = 0;
  /** in Outbox::streams */
  bool listed = false;
  /** some pieces are plain */
  bool plain = false;
};

/** What a caller of outboxPut says about its bytes. */
enum class Origin {
  kArena,   // they stay as they are until the next wait
  kCaller,  // they may change as soon as the call returns
};

/**
 * Queues bytes for the next wait, or sends them at once when there are too many to keep. Returns the length of what is
 * unsent now (then streamSent() follows), or -errno.
 */
int outboxPut(Stream *s, const uint8_t *bytes, size_t length, Origin origin);
/** Likewise, as they are: of a TLS connection, records. */
int outboxPutRecords(Stream *s, const uint8_t *bytes, size_t length, Origin origin);
/** Encrypts what is queued for a TLS connection. Returns 0 or -errno. */
int outboxSeal(Stream *s);
/** Sends what is queued for a stream now. A failure is the stream's next record. */
void outboxFlush(Stream *s);
/** Drops what is queued for a stream. */
void outboxDrop(Stream *s);

/* ---- for backends: all streams of a lane, in a wait ---- */

/** Encrypts what is queued; before anything is handed to the kernel. A failure is the stream's next record. */
void outboxSealAll(Outbox *outbox);
/** Writes the stream's pieces as an array of outbox.count parts. */
void outboxGather(const Stream *s, iovec *parts);
/** The pieces of a stream were handed to the kernel, which took n bytes or failed with -errno. What is left is unsent, and
 *  drain() of the backend is called for it. */
void outboxSent(Stream *s, ssize_t n);
/** Sends everything with one system call a stream. */
void outboxFlushAll(Outbox *outbox);
/** Nothing refers to the pieces any more: forgets them. */
void outboxReset(Outbox *outbox);

}  // namespace tsb
