/* Queued sends. See outbox.h. */
#include "loop/outbox.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "loop/stream.h"
#include "plainio.h"

namespace tsb {

constexpr size_t kChunkSize = 64 * 1024;
/** Chunks that are kept for the next turn. */
constexpr size_t kChunksKept = 4;
/** Chunks of one turn, 1 MiB; what does not fit is sent at once. */
constexpr size_t kChunksMost = 16;

Copies::~Copies() {
  for (uint8_t *chunk : chunks_) free(chunk);
}

uint8_t *Copies::take(size_t length) {
  if (chunk_ < chunks_.size() && kChunkSize - used_ < length) {
    chunk_++;
    used_ = 0;
  }
  if (chunk_ == chunks_.size()) {
    if (chunk_ == kChunksMost) return nullptr;
    uint8_t *memory = static_cast<uint8_t *>(malloc(kChunkSize));
    if (!memory) return nullptr;
    chunks_.push_back(memory);
  }
  uint8_t *place = chunks_[chunk_] + used_;
  used_ += length;
  return place;
}

void Copies::reset() {
  while (chunks_.size() > kChunksKept) {
    free(chunks_.back());
    chunks_.pop_back();
  }
  chunk_ = used_ = 0;
}

static std::vector<OutPiece> &piecesOf(const Stream *s) { return s->lane->outbox.pieces; }

/** One stream fewer has pieces. */
static void release(Outbox *outbox) {
  if (--outbox->filled > 0) return;
  outbox->pieces.clear();
  outbox->copies.reset();
}

static void forgetPieces(Stream *s) {
  const bool listed = s->outbox.listed;
  s->outbox = OutboxPart();
  s->outbox.listed = listed;
}

void outboxDrop(Stream *s) {
  if (s->outbox.count == 0) return;
  forgetPieces(s);
  release(&s->lane->outbox);
}

static void addPiece(Stream *s, const uint8_t *bytes, size_t length, bool plain) {
  Outbox *outbox = &s->lane->outbox;
  OutboxPart *part = &s->outbox;
  part->length += length;
  part->plain = part->plain || plain;
  if (part->count > 0) {
    OutPiece *last = &outbox->pieces[static_cast<size_t>(part->last)];
    if (last->bytes + last->length == bytes && last->plain == plain) {
      last->length += length;
      return;
    }
  }
  const int index = static_cast<int>(outbox->pieces.size());
  outbox->pieces.push_back({bytes, length, -1, plain});
  if (part->count > 0) {
    outbox->pieces[static_cast<size_t>(part->last)].next = index;
  } else {
    part->first = index;
    outbox->filled++;
  }
  part->last = index;
  part->count++;
  if (part->listed) return;
  part->listed = true;
  outbox->streams.push_back(s);
}

void outboxGather(const Stream *s, iovec *parts) {
  for (int i = s->outbox.first; i >= 0; i = piecesOf(s)[static_cast<size_t>(i)].next) {
    const OutPiece &piece = piecesOf(s)[static_cast<size_t>(i)];
    *parts++ = {const_cast<uint8_t *>(piece.bytes), piece.length};
  }
}

/** Appends to `unsent` what follows the first `skip` bytes of the parts. Returns false when memory is exhausted. */
static bool keepUnsent(Stream *s, const iovec *parts, int count, size_t skip) {
  for (int i = 0; i < count; i++) {
    const size_t length = parts[i].iov_len;
    if (skip >= length) {
      skip -= length;
      continue;
    }
    if (!s->unsent.append(static_cast<const uint8_t *>(parts[i].iov_base) + skip, length - skip)) return false;
    skip = 0;
  }
  return true;
}

/** Sends the queued pieces and the bytes given. Returns 0 or -errno; what the kernel does not take is unsent. */
static int sendNow(Stream *s, const uint8_t *bytes, size_t length) {
  iovec parts[kPiecesMost + 1];
  int count = s->outbox.count;
  const size_t all = s->outbox.length + length;
  outboxGather(s, parts);
  if (length > 0) parts[count++] = {const_cast<uint8_t *>(bytes), length};
  ssize_t n = count == 1 ? sendRetry(s->fd, static_cast<uint8_t *>(parts[0].iov_base), parts[0].iov_len)
                         : sendPartsRetry(s->fd, parts, static_cast<size_t>(count));
  const int err = n < 0 && !wouldBlock(errno) ? -errno : 0;
  if (n < 0) n = 0;
  s->lane->sent += static_cast<uint64_t>(n);
  const bool kept = err < 0 || keepUnsent(s, parts, count, static_cast<size_t>(n));
  outboxDrop(s);
  s->sendBroken = err < 0 || !kept;
  if (s->sendBroken) return err < 0 ? err : -ENOMEM;
  if (static_cast<size_t>(n) == all) return 0;
  s->streams->loop->ops->drain(s->streams->loop, s);
  return 0;
}

/** Returns false when there are too many already. */
static bool queue(Stream *s, const uint8_t *bytes, size_t length, Origin origin, bool plain) {
  if (s->outbox.count == kPiecesMost) return false;
  if (origin == Origin::kCaller) {
    uint8_t *copy = length <= kCopyMost ? s->lane->outbox.copies.take(length) : nullptr;
    if (!copy) return false;
    memcpy(copy, bytes, length);
    bytes = copy;
  }
  addPiece(s, bytes, length, plain);
  return true;
}

int outboxPutRecords(Stream *s, const uint8_t *bytes, size_t length, Origin origin) {
  if (s->sendBroken) return -EPIPE;
  if (!s->unsent.empty() || s->connecting) {
    if (!s->unsent.append(bytes, length)) return -ENOMEM;
    s->streams->loop->ops->drain(s->streams->loop, s);
  } else if (!queue(s, bytes, length, origin, false)) {
    const int err = sendNow(s, bytes, length);
    if (err < 0) return err;
  }
  return static_cast<int>(s->unsent.length());
}

static int encrypt(Stream *s, const uint8_t *bytes, size_t length) {
  s->encrypting = true;
  const int err = tlsWrite(s->tls, bytes, length);
  s->encrypting = false;
  return err;
}

int outboxPut(Stream *s, const uint8_t *bytes, size_t length, Origin origin) {
  if (!s->tls) return outboxPutRecords(s, bytes, length, origin);
  if (s->sendBroken) return -EPIPE;
  if (streamAway(s)) return -EIO;
  if (tlsWritable(s->tls) && s->unsent.empty() && queue(s, bytes, length, origin, true)) return 0;
  int err = outboxSeal(s);
  if (err == 0) err = encrypt(s, bytes, length);
  return err < 0 ? err : static_cast<int>(s->unsent.length());
}

/* ---- encrypting ---- */

/** Small pieces that follow each other, to be encrypted as one record. */
struct Joined {
  uint8_t bytes[kTlsClientRecordMost];
  size_t length = 0;
};

static int sealJoined(Stream *s, Joined *joined) {
  const size_t length = joined->length;
  joined->length = 0;
  return length > 0 ? encrypt(s, joined->bytes, length) : 0;
}

static int sealPiece(Stream *s, const OutPiece &piece, Joined *joined) {
  const bool fits = piece.length <= sizeof(joined->bytes) - joined->length;
  if (piece.plain && fits && (joined->length > 0 || piece.next >= 0)) {
    memcpy(joined->bytes + joined->length, piece.bytes, piece.length);
    joined->length += piece.length;
    return 0;
  }
  const int err = sealJoined(s, joined);
  if (err < 0) return err;
  if (piece.plain) return encrypt(s, piece.bytes, piece.length);
  const int unsent = outboxPutRecords(s, piece.bytes, piece.length, Origin::kArena);
  return unsent < 0 ? unsent : 0;
}

int outboxSeal(Stream *s) {
  if (!s->outbox.plain) return 0;
  Outbox *outbox = &s->lane->outbox;
  int next = s->outbox.first;
  // the pieces are needed until the last one is encrypted, whatever is sent meanwhile: `filled` is not lowered yet
  forgetPieces(s);
  Joined joined;
  int err = 0;
  while (next >= 0 && err == 0) {
    const OutPiece piece = outbox->pieces[static_cast<size_t>(next)];
    next = piece.next;
    err = sealPiece(s, piece, &joined);
  }
  if (err == 0) err = sealJoined(s, &joined);
  release(outbox);
  return err;
}

void outboxSealAll(Outbox *outbox) {
  for (size_t i = 0; i < outbox->streams.size(); i++) {
    Stream *s = outbox->streams[i];
    const int err = outboxSeal(s);
    if (err < 0) streamSendFailed(s, err);
  }
}

void outboxFlush(Stream *s) {
  if (s->outbox.count == 0) return;
  int err = outboxSeal(s);
  if (err == 0 && s->outbox.count > 0) err = sendNow(s, nullptr, 0);
  if (err < 0) streamSendFailed(s, err);
}

void outboxSent(Stream *s, ssize_t n) {
  iovec parts[kPiecesMost];
  const size_t all = s->outbox.length;
  outboxGather(s, parts);
  if (n == -EAGAIN || n == -EINTR) n = 0;
  const size_t sent = n < 0 ? all : static_cast<size_t>(n);
  if (n > 0) s->lane->sent += sent;
  const bool kept = keepUnsent(s, parts, s->outbox.count, sent);
  outboxDrop(s);
  if (n < 0)
    streamSendFailed(s, static_cast<int>(n));
  else if (!kept)
    streamSendFailed(s, -ENOMEM);
  else if (sent < all)
    s->streams->loop->ops->drain(s->streams->loop, s);
}

void outboxReset(Outbox *outbox) {
  for (Stream *s : outbox->streams) {
    outboxDrop(s);
    s->outbox.listed = false;
  }
  outbox->streams.clear();
}

void outboxFlushAll(Outbox *outbox) {
  if (outbox->streams.empty()) return;
  for (Stream *s : outbox->streams) outboxFlush(s);
  outboxReset(outbox);
}

}  // namespace tsb
