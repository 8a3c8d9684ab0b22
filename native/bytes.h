/*
 * A queue of bytes that uses no memory while it is empty. Most connections never keep a partial packet and never wait for
 * a slow reader, so a stream must not carry buffers. Used for kept and for unsent bytes.
 */
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace tsb {

struct Bytes {
  uint8_t *memory = nullptr;
  size_t begin = 0;
  size_t length = 0;
  size_t capacity = 0;

  const uint8_t *first() const { return memory + begin; }

  /** Appends. The first append allocates the exact size, later ones grow by half. Returns false when memory is exhausted. */
  bool append(const uint8_t *bytes, size_t n) {
    if (n == 0) return true;
    if (begin + length + n > capacity && !makeRoom(n)) return false;
    memcpy(memory + begin + length, bytes, n);
    length += n;
    return true;
  }

  void drop(size_t n) {
    begin += n;
    length -= n;
    if (length == 0) clear();
  }

  void clear() {
    free(memory);
    memory = nullptr;
    begin = length = capacity = 0;
  }

 private:
  bool makeRoom(size_t n) {
    // move down only if that frees at least half: otherwise every small append could move everything
    if (begin >= length && length + n <= capacity) {
      memmove(memory, memory + begin, length);
      begin = 0;
      return true;
    }
    size_t wanted = length + n;
    if (capacity > 0 && wanted < capacity + capacity / 2) wanted = capacity + capacity / 2;
    uint8_t *grown = static_cast<uint8_t *>(malloc(wanted));
    if (!grown) return false;
    if (length > 0) memcpy(grown, memory + begin, length);
    free(memory);
    memory = grown;
    begin = 0;
    capacity = wanted;
    return true;
  }
};

}  // namespace tsb
