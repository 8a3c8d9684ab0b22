/*
 * What one wait() hands to TypeScript: the arena with the received bytes, and the ring of records. Both are mapped once
 * per environment and never move, so that JavaScript can hold one ArrayBuffer over each.
 *
 * During a wait, both are divided into sections, and each section is filled by one thread. The sections share nothing, so
 * a backend with several threads needs no lock; join() then closes the gaps between their records.
 */
#pragma once

#include <sys/mman.h>
#include <time.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace tsb {

/** Received bytes of one turn. The kernel provides memory only for the pages that are used. */
constexpr size_t kRecvSpace = 4u << 20;
/** Bytes that are asked for between turns (takeKept); they lie behind the receive space. */
constexpr size_t kSideSpace = 2u << 20;
/** Buffers that a completion backend lends to the kernel; they lie behind both. */
constexpr size_t kBufferSpace = 4u << 20;
constexpr size_t kBuffersAt = kRecvSpace + kSideSpace;
constexpr size_t kArenaSize = kBuffersAt + kBufferSpace;
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
 * Added to the kernel's monotonic clock, which is near 0 after a boot. To TypeScript an instant of 0 means "not set", and an
 * instant before the boot has to be a positive number too. In usec: 31 years.
 */
constexpr double kClockEpoch = 1e15;

inline double clockUsec(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec / 1000);
}

/** The clock of every deadline. Setting the wall clock does not change it. */
inline double monotonicUsec() { return clockUsec(CLOCK_MONOTONIC) + kClockEpoch; }

/** The part of the arena and of the ring that one thread fills. */
struct Section {
  uint8_t *arena = nullptr;
  /** offsets in the arena: the section's bounds, and the end of its used part (a multiple of 8) */
  size_t begin = 0;
  size_t end = 0;
  size_t used = 0;
  /** bytes at the end that are not given out at the moment, see laneDeliver */
  size_t reserved = 0;
  Record *records = nullptr;
  int count = 0;
  int most = 0;
  /** records that must not be lost but found the section full; the next turn begins with them */
  std::vector<Record> late;

  void beginTurn() {
    used = begin;
    const size_t taken = late.size() < static_cast<size_t>(most) ? late.size() : static_cast<size_t>(most);
    count = static_cast<int>(taken);
    if (taken == 0) return;
    memcpy(records, late.data(), taken * sizeof(Record));
    late.erase(late.begin(), late.begin() + static_cast<std::ptrdiff_t>(taken));
  }

  /** A caller that can leave its event for the next turn asks first. */
  bool full() const { return count >= most; }

  void add(Kind kind, int handle, int result, int offset) {
    const Record record = {kind, handle, result, offset};
    if (full())
      late.push_back(record);
    else
      records[count++] = record;
  }

  size_t size() const { return end - begin; }

  /** Bytes that may be received now. */
  size_t room() const { return end - used > reserved ? end - used - reserved : 0; }

  uint8_t *place() const { return arena + used; }

  /** Marks received bytes as used and returns their offset. The next bytes begin at a multiple of 8. */
  int take(size_t length) {
    const size_t offset = used;
    used = (used + length + 7) & ~static_cast<size_t>(7);
    if (used > end) used = end;
    return static_cast<int>(offset);
  }
};

struct Turn {
  uint8_t *arena = nullptr;
  Record *ring = nullptr;
  /** counts the turns; only equality matters */
  uint32_t number = 0;
  /** never empty. The first one is filled by the thread that calls wait(), and holds all records after join(). */
  std::vector<Section> sections;
  size_t sideUsed = 0;

  /** Maps both regions as one section. Returns false when the kernel refuses. */
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
    divide(1);
    return true;
  }

  void unmap() {
    if (arena) munmap(arena, kArenaSize);
    if (ring) munmap(ring, kRingSize);
    arena = nullptr;
    ring = nullptr;
  }

  /** Divides both regions into n equal sections. Only before the first turn: it forgets all records. */
  void divide(int n) {
    const size_t bytes = kRecvSpace / static_cast<size_t>(n) & ~static_cast<size_t>(7);
    const int records = kRingRecords / n;
    sections.assign(static_cast<size_t>(n), Section());
    for (int i = 0; i < n; i++) {
      Section &section = sections[static_cast<size_t>(i)];
      section.arena = arena;
      section.begin = section.used = bytes * static_cast<size_t>(i);
      section.end = section.begin + bytes;
      section.records = ring + records * i;
      section.most = records;
    }
  }

  void begin() {
    number++;
    sideUsed = 0;
    sections[0].most = kRingRecords / static_cast<int>(sections.size());
    for (Section &section : sections) section.beginTurn();
  }

  /** Moves the records of all sections together, in the order of the sections. Returns their number. */
  int join() {
    Section &all = sections[0];
    for (size_t i = 1; i < sections.size(); i++) {
      Section &section = sections[i];
      memmove(ring + all.count, section.records, static_cast<size_t>(section.count) * sizeof(Record));
      all.count += section.count;
      section.count = 0;
    }
    all.most = kRingRecords;
    return all.count;
  }

  int count() const { return sections[0].count; }

  /** For records that belong to no lane. Only the thread that calls wait() may add them. */
  void add(Kind kind, int handle, int result, int offset) { sections[0].add(kind, handle, result, offset); }

  /** Adds a record between two turns: the ring still belongs to the turn that is being handled. */
  void addForNext(Kind kind, int handle, int result) { sections[0].late.push_back({kind, handle, result, 0}); }

  /** Returns the offset of a place for bytes that are asked for between turns, or -1 when there is no room. */
  int sideTake(size_t length) {
    if (length > kSideSpace - sideUsed) return -1;
    const size_t offset = kRecvSpace + sideUsed;
    sideUsed = (sideUsed + length + 7) & ~static_cast<size_t>(7);
    if (sideUsed > kSideSpace) sideUsed = kSideSpace;
    return static_cast<int>(offset);
  }

  /** The clock is read once a turn, for all its events. */
  void stampClock() {
    const double usec = monotonicUsec();
    memcpy(reinterpret_cast<uint8_t *>(ring) + kRecordsSize, &usec, sizeof(usec));
  }

  bool inArena(int offset, int length) const {
    return offset >= 0 && length >= 0 && static_cast<size_t>(offset) + static_cast<size_t>(length) <= kArenaSize;
  }
};

}  // namespace tsb
