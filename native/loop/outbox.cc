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

Copies::~Copies() {
  for (uint8_t *chunk : chunks_) free(chunk);
}

uint8_t *Copies::take(size_t length) {
  if (chunk_ < chunks_.size() && kChunkSize - used_ < length) {
    chunk_++;
    used_ = 0;
  }
  if (chunk_ == chunks_.size()) {
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

/* The pieces stay in the lane's array until the end of the turn; nothing refers to them any more. */
void outboxDrop(Stream *s) {
  const bool listed = s->outbox.listed;
  s->outbox = OutboxPart();
  s->outbox.listed = listed;
}

static void addPiece(Stream *s, const uint8_t *bytes, size_t length) {
  Outbox *outbox = &s->lane->outbox;
  OutboxPart *part = &s->outbox;
  part->length += length;
  if (part->count > 0) {
    OutPiece *last = &outbox->pieces[static_cast<size_t>(part->last)];
    if (last->bytes + last->length == bytes) {
      last->length += length;
      return;
    }
  }
  const int index = static_cast<int>(outbox->pieces.size());
  outbox->pieces.push_back({bytes, length, -1});
  if (part->count > 0)
    outbox->pieces[static_cast<size_t>(part->last)].next = index;
  else
    part->first = index;
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
  outboxDrop(s);
  if (length > 0) parts[count++] = {const_cast<uint8_t *>(bytes), length};
  ssize_t n = count == 1 ? sendRetry(s->fd, static_cast<uint8_t *>(parts[0].iov_base), parts[0].iov_len)
                         : sendPartsRetry(s->fd, parts, static_cast<size_t>(count));
  if (n < 0 && !wouldBlock(errno)) return -errno;
  if (n < 0) n = 0;
  if (static_cast<size_t>(n) == all) return 0;
  if (!keepUnsent(s, parts, count, static_cast<size_t>(n))) return -ENOMEM;
  s->streams->loop->ops->drain(s->streams->loop, s);
  return 0;
}

int outboxPut(Stream *s, const uint8_t *bytes, size_t length, Origin origin) {
  if (s->unsent.length > 0 || s->connecting) {
    if (!s->unsent.append(bytes, length)) return -ENOMEM;
    s->streams->loop->ops->drain(s->streams->loop, s);
    return static_cast<int>(s->unsent.length);
  }
  if (origin == Origin::kCaller && length <= kCopyMost && s->outbox.count < kPiecesMost) {
    uint8_t *copy = s->lane->outbox.copies.take(length);
    if (!copy) return -ENOMEM;
    memcpy(copy, bytes, length);
    addPiece(s, copy, length);
  } else if (origin == Origin::kArena && s->outbox.count < kPiecesMost) {
    addPiece(s, bytes, length);
  } else {
    const int err = sendNow(s, bytes, length);
    if (err < 0) return err;
  }
  return static_cast<int>(s->unsent.length);
}

void outboxFlush(Stream *s) {
  if (s->outbox.count == 0) return;
  const int err = sendNow(s, nullptr, 0);
  if (err < 0) streamSendFailed(s, err);
}

void outboxSent(Stream *s, ssize_t n) {
  iovec parts[kPiecesMost];
  const int count = s->outbox.count;
  const size_t all = s->outbox.length;
  outboxGather(s, parts);
  outboxDrop(s);
  if (n == -EAGAIN || n == -EINTR) n = 0;
  if (n < 0) {
    streamSendFailed(s, static_cast<int>(n));
  } else if (static_cast<size_t>(n) < all) {
    if (keepUnsent(s, parts, count, static_cast<size_t>(n)))
      s->streams->loop->ops->drain(s->streams->loop, s);
    else
      streamSendFailed(s, -ENOMEM);
  }
}

void outboxReset(Outbox *outbox) {
  for (Stream *s : outbox->streams) s->outbox = OutboxPart();
  outbox->streams.clear();
  outbox->pieces.clear();
  outbox->copies.reset();
}

void outboxFlushAll(Outbox *outbox) {
  if (outbox->streams.empty()) return;
  for (Stream *s : outbox->streams) outboxFlush(s);
  outboxReset(outbox);
}

}  // namespace tsb
