/*
 * What one wait() hands to TypeScript: the arena with the received bytes, and the ring of records. Both are mapped once
 * per environment and never move, so that JavaScript can hold one ArrayBuffer over each.
 *
 * During a wait, both are divided into sections, and each section is filled by one thread. The sections share nothing, so
 * a backend with several threads needs no lock; join() then closes the gaps between their records.
 *
 * The arena has received bytes of the thread that calls wait(), bytes that are asked for between turns, and buffers that a
 * completion backend lends to the kernel. For each hand (hands.h), two halves for received bytes and buffers follow.
 */
#pragma once

#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace tsb {

/** Received bytes of one turn. The kernel provides memory only for the pages that are used. */
constexpr size_t kRecvSpace = 4u << 20;
/** Bytes that are asked for between turns (streamResume); they lie behind the receive space. */
constexpr size_t kSideSpace = 2u << 20;
/** Buffers that a completion backend lends to the kernel; they lie behind both. */
constexpr size_t kBufferSpace = 4u << 20;
constexpr size_t kBuffersAt = kRecvSpace + kSideSpace;
constexpr size_t kArenaSize = kBuffersAt + kBufferSpace;
/** Most hands of one loop. */
constexpr int kHandsMost = 64;
/** Received bytes of one hand in one turn. While it receives into one half, other hands send from the other one, which
 *  holds what the turn before received. */
constexpr size_t kHandHalf = 3u << 19;
constexpr size_t kHandBuffers = 2u << 20;
constexpr size_t kHandSpace = 2 * kHandHalf + kHandBuffers;
constexpr size_t handSpaceAt(int hand) { return kArenaSize + static_cast<size_t>(hand) * kHandSpace; }
constexpr size_t kArenaMost = handSpaceAt(kHandsMost);
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

/** True for the kinds whose records name a connection, a listener or a watch; others have numbers of their own. */
constexpr bool namesHandle(int32_t kind) {
  return (kind >= kAccept && kind <= kDrain) || kind == kReadable || kind == kTls;
}

struct Record {
  int32_t kind;
  int32_t handle;
  int32_t result;
  int32_t offset;
};

constexpr size_t kRecordsSize = kRingRecords * sizeof(Record);
/** Behind the records: the monotonic clock at the end of the wait, a double in microseconds, */
constexpr size_t kClockAt = kRecordsSize;
/** and the number of bytes that streamResume has moved last. */
constexpr size_t kResumedAt = kClockAt + sizeof(double);
/** Behind that: the addresses of the connection that streamAccept has opened last. */
constexpr size_t kNamesAt = kResumedAt + sizeof(double);

/** The addresses of a TCP connection over IPv4; a port of 0 says that it is another connection. Hosts as numbers. */
struct Inet4Names {
  uint32_t peerHost;
  uint32_t peerPort;
  uint32_t localHost;
  uint32_t localPort;
};

constexpr size_t kRingSize = kNamesAt + sizeof(Inet4Names);

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
  /** distance to the half that the next turn fills; 0 = every turn fills the same space, because there are no hands */
  std::ptrdiff_t other = 0;
  Record *records = nullptr;
  int count = 0;
  int most = 0;
  /** records that must not be lost but found the section full; the next turn begins with them */
  std::vector<Record> late;

  void beginTurn() {
    begin += static_cast<size_t>(other);
    end += static_cast<size_t>(other);
    other = -other;
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
  /** records of one turn; tests lower it */
  int records = kRingRecords;
  /** counts the turns; only equality matters */
  uint32_t number = 0;
  /** never empty. The first one is filled by the thread that calls wait(), and holds all records after join(). */
  std::vector<Section> sections;
  size_t sideUsed = 0;

  /** Maps both regions as one section. Returns false when the kernel refuses. */
  bool map() {
    // addresses for the most hands; memory for those there are
    void *a = mmap(nullptr, kArenaMost, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (a == MAP_FAILED) return false;
    arena = static_cast<uint8_t *>(a);
    void *r = mmap(nullptr, kRingSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ring = r == MAP_FAILED ? nullptr : static_cast<Record *>(r);
    if (ring && divide(0)) return true;
    unmap();
    return false;
  }

  void unmap() {
    if (arena) munmap(arena, kArenaMost);
    if (ring) munmap(ring, kRingSize);
    arena = nullptr;
    ring = nullptr;
  }

  int hands() const { return static_cast<int>(sections.size()) - 1; }
  size_t arenaSize() const { return handSpaceAt(hands()); }

  /** Makes sections for the thread that calls wait() and for so many hands. Only before the first turn: it forgets all
   *  records. Returns false when the kernel has no memory. */
  bool divide(int hands) {
    if (mprotect(arena, handSpaceAt(hands), PROT_READ | PROT_WRITE) < 0) return false;
    sections.assign(static_cast<size_t>(hands) + 1, Section());
    const int most = recordsOfSection();
    for (int i = 0; i <= hands; i++) {
      Section &section = sections[static_cast<size_t>(i)];
      section.arena = arena;
      section.begin = section.used = i == 0 ? 0 : handSpaceAt(i - 1);
      // a hand may be sending what a section held in the last turn, while its thread fills it again
      const size_t half = i == 0 ? kRecvSpace / 2 : kHandHalf;
      section.end = section.begin + (hands == 0 ? kRecvSpace : half);
      section.other = hands == 0 ? 0 : static_cast<std::ptrdiff_t>(half);
      section.records = ring + most * i;
      section.most = most;
    }
    return true;
  }

  void begin() {
    number++;
    sideUsed = 0;
    sections[0].most = recordsOfSection();
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
    all.most = records;
    return all.count;
  }

  /** Records of all sections. */
  int count() const {
    int all = 0;
    for (const Section &section : sections) all += section.count;
    return all;
  }

  /** For records that belong to no lane. Only the thread that calls wait() may add them. */
  void add(Kind kind, int handle, int result, int offset) { sections[0].add(kind, handle, result, offset); }

  /** Drops the late records of a handle that is closed: its number may belong to another connection when they are due. */
  void forget(int handle) {
    for (Section &section : sections) {
      if (section.late.empty()) continue;
      const auto ofHandle = [handle](const Record &r) { return r.handle == handle && namesHandle(r.kind); };
      section.late.erase(std::remove_if(section.late.begin(), section.late.end(), ofHandle), section.late.end());
    }
  }

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

  /** The clock is read once a turn, for all its events. Returns it. */
  double stampClock() {
    const double usec = monotonicUsec();
    memcpy(reinterpret_cast<uint8_t *>(ring) + kClockAt, &usec, sizeof(usec));
    return usec;
  }

  void tellResumed(int32_t length) { memcpy(reinterpret_cast<uint8_t *>(ring) + kResumedAt, &length, sizeof(length)); }

  void tellNames(const Inet4Names &names) { memcpy(reinterpret_cast<uint8_t *>(ring) + kNamesAt, &names, sizeof(names)); }

  bool inArena(int offset, int length) const {
    return offset >= 0 && length >= 0 && static_cast<size_t>(offset) + static_cast<size_t>(length) <= arenaSize();
  }

 private:
  int recordsOfSection() const { return records / static_cast<int>(sections.size()); }
};

}  // namespace tsb
