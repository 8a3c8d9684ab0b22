/*
 * A queue of bytes that uses no memory while it is empty. Most connections never keep a partial packet and never wait for
 * a slow reader, so a stream must not carry buffers: it carries one pointer. Used for kept and for unsent bytes.
 */
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace tsb {

class Bytes {
 public:
  bool empty() const { return !block_; }
  size_t length() const { return block_ ? block_->length : 0; }
  /** Null when it is empty. */
  const uint8_t *first() const { return block_ ? block_->bytes + block_->begin : nullptr; }

  /** Appends. The first append allocates the exact size, later ones grow by half. Returns false when memory is exhausted. */
  bool append(const uint8_t *bytes, size_t n) {
    if (n == 0) return true;
    if ((!block_ || block_->begin + block_->length + n > block_->capacity) && !makeRoom(n)) return false;
    memcpy(block_->bytes + block_->begin + block_->length, bytes, n);
    block_->length += n;
    return true;
  }

  /** Forgets the first n bytes, at most all. */
  void drop(size_t n) {
    if (!block_) return;
    block_->begin += n;
    block_->length -= n;
    if (block_->length == 0) clear();
  }

  void clear() {
    free(block_);
    block_ = nullptr;
  }

 private:
  struct Block {
    size_t begin;
    size_t length;
    size_t capacity;
    uint8_t bytes[];
  };

  bool makeRoom(size_t n) {
    const size_t held = length();
    // move down only if that frees at least half: otherwise every small append could move everything
    if (block_ && block_->begin >= held && held + n <= block_->capacity) {
      memmove(block_->bytes, first(), held);
      block_->begin = 0;
      return true;
    }
    size_t wanted = held + n;
    if (block_ && wanted < block_->capacity + block_->capacity / 2) wanted = block_->capacity + block_->capacity / 2;
    Block *grown = static_cast<Block *>(malloc(sizeof(Block) + wanted));
    if (!grown) return false;
    *grown = {0, held, wanted};
    if (held > 0) memcpy(grown->bytes, first(), held);
    free(block_);
    block_ = grown;
    return true;
  }

  Block *block_ = nullptr;
};

}  // namespace tsb
