/*
 * What one wait() hands to TypeScript: the arena with the received bytes and the ring of records. Both are mapped once
 * per environment and never move, so that JavaScript can hold one ArrayBuffer over each. Backends fill them.
 */
#pragma once

#include <sys/mman.h>
#include <time.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace tsb {

/** Received bytes of one turn. Pages are touched only as far as turns fill them. */
constexpr size_t kRecvSpace = 4u << 20;
/** Bytes that are asked for between turns (takeKept), behind the receive space. */
constexpr size_t kSideSpace = 2u << 20;
constexpr size_t kArenaSize = kRecvSpace + kSideSpace;
/** Records of one turn. */
constexpr int kRingRecords = 4096;

/** Same numbers as Ev in src/core/base/native.ts. */
enum Kind : int32_t {
  kAccept = 1,
  kConnect = 2,
  kRecv = 3,
  kDrain = 4,
  kSignal = 5,
  kWake = 6,
  kResolved = 7,
  kReadable = 8,
  kTls = 9,
  kAuthenticated = 16,
};

struct Record {
  int32_t kind;
  int32_t handle;
  int32_t result;
  int32_t offset;
};

constexpr size_t kRecordsSize = kRingRecords * sizeof(Record);
/** Behind the records: the monotonic clock at the end of the wait, a double in microseconds. */
constexpr size_t kRingSize = kRecordsSize + sizeof(double);

/**
 * Added to the kernel's monotonic clock, which is near 0 after a boot: to TypeScript an instant of 0 means "not set", and an
 * instant that lies before the boot still has to be a positive number. usec, 31 years
 */
constexpr double kClockEpoch = 1e15;

inline double clockUsec(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec / 1000);
}

/** The clock of every deadline: no step of the wall clock moves it. */
inline double monotonicUsec() { return clockUsec(CLOCK_MONOTONIC) + kClockEpoch; }

struct Turn {
  uint8_t *arena = nullptr;
  Record *ring = nullptr;
  int count = 0;
  /** bytes of the receive space and of the side space in use, multiples of 8 */
  size_t recvUsed = 0;
  size_t sideUsed = 0;
  /** records that must not be lost and found the ring full: first of the next turn */
  std::vector<Record> late;

  /** Maps both regions; false when the kernel refuses. */
  bool map() {
    void *a = mmap(nullptr, kArenaSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (a == MAP_FAILED) return false;
    void *r = mmap(nullptr, kRingSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (r == MAP_FAILED) {
      munmap(a, kArenaSize);
      return false;
    }
    arena = static_cast<uint8_t *>(a);
    ring = static_cast<Record *>(r);
    return true;
  }

  void unmap() {
    if (arena) munmap(arena, kArenaSize);
    if (ring) munmap(ring, kRingSize);
    arena = nullptr;
    ring = nullptr;
  }

  void begin() {
    count = 0;
    recvUsed = 0;
    sideUsed = 0;
    size_t taken = late.size() < static_cast<size_t>(kRingRecords) ? late.size() : kRingRecords;
    if (taken == 0) return;
    memcpy(ring, late.data(), taken * sizeof(Record));
    count = static_cast<int>(taken);
    late.erase(late.begin(), late.begin() + taken);
  }

  /** Callers that can leave their event for the next turn ask first. */
  bool full() const { return count == kRingRecords; }

  void add(Kind kind, int handle, int result, int offset) {
    Record record = {kind, handle, result, offset};
    if (full())
      late.push_back(record);
    else
      ring[count++] = record;
  }

  size_t recvRoom() const { return kRecvSpace - recvUsed; }
  uint8_t *recvPlace() { return arena + recvUsed; }
  /** Marks received bytes as used; returns their offset. The next ones begin at a multiple of 8. */
  int recvTake(size_t length) {
    size_t offset = recvUsed;
    recvUsed = (recvUsed + length + 7) & ~static_cast<size_t>(7);
    if (recvUsed > kRecvSpace) recvUsed = kRecvSpace;
    return static_cast<int>(offset);
  }

  /** Place for bytes asked for between turns; -1 when there is no room. */
  int sideTake(size_t length) {
    if (length > kSideSpace - sideUsed) return -1;
    size_t offset = kRecvSpace + sideUsed;
    sideUsed = (sideUsed + length + 7) & ~static_cast<size_t>(7);
    if (sideUsed > kSideSpace) sideUsed = kSideSpace;
    return static_cast<int>(offset);
  }

  /** One reading of the clock serves all events of a turn. */
  void stampClock() {
    const double usec = monotonicUsec();
    memcpy(reinterpret_cast<uint8_t *>(ring) + kRecordsSize, &usec, sizeof(usec));
  }

  bool inArena(int offset, int length) const {
    return offset >= 0 && length >= 0 && static_cast<size_t>(offset) + static_cast<size_t>(length) <= kArenaSize;
  }
};

}  // namespace tsb
