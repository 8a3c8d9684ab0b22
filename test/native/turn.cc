/* The turn: its sections are filled apart, and their records come together in order. */
#include "loop/turn.h"

#include "check.h"

using namespace tsb;

TEST(sections_join, "the records of all sections follow each other, in the order of the sections") {
  Turn turn;
  CHECK(turn.map());
  CHECK(turn.divide(1));
  for (int round = 0; round < 3; round++) {
    turn.begin();
    turn.sections[1].add(kRecv, 20, round, 0);
    turn.sections[0].add(kRecv, 10, round, 0);
    turn.sections[1].add(kRecv, 21, round, 0);
    CHECK_EQUAL(turn.join(), 3);
    // what comes behind the join, as PAM's answers do
    turn.add(kAuthenticated, 30, round, 0);
    CHECK_EQUAL(turn.count(), 4);
    const int handles[] = {10, 20, 21, 30};
    for (int i = 0; i < 4; i++) {
      CHECK_EQUAL(turn.ring[i].handle, handles[i]);
      CHECK_EQUAL(turn.ring[i].result, round);
    }
  }
  turn.unmap();
}

TEST(sections_full, "a full section leaves its records to the next turn and does not touch its neighbour") {
  Turn turn;
  CHECK(turn.map());
  CHECK(turn.divide(1));
  const int most = kRingRecords / 2;
  turn.begin();
  turn.sections[1].add(kRecv, 1, 0, 0);
  for (int i = 0; i < most + 3; i++) turn.sections[0].add(kDrain, 100 + i, 0, 0);
  CHECK(turn.sections[0].full());
  CHECK_EQUAL(turn.join(), most + 1);
  CHECK_EQUAL(turn.ring[most].handle, 1);
  turn.begin();
  CHECK_EQUAL(turn.join(), 3);
  for (int i = 0; i < 3; i++) CHECK_EQUAL(turn.ring[i].handle, 100 + most + i);
  turn.unmap();
}

TEST(sections_bytes, "sections share the arena without overlapping, and a reserve is not given out") {
  Turn turn;
  CHECK(turn.map());
  CHECK(turn.divide(1));
  turn.begin();
  Section &first = turn.sections[0], &second = turn.sections[1];
  CHECK(first.end <= second.begin && second.end <= turn.arenaSize());
  const int start = static_cast<int>(first.begin);
  CHECK_EQUAL(first.take(3), start);
  CHECK_EQUAL(first.take(8), start + 8);
  CHECK_EQUAL(first.used, first.begin + 16);
  first.reserved = first.size() / 4;
  CHECK_EQUAL(first.room(), first.size() - first.size() / 4 - 16);
  CHECK_EQUAL(second.take(second.size()), static_cast<int>(second.begin));
  CHECK_EQUAL(second.room(), 0u);
  CHECK_EQUAL(turn.sideTake(5), static_cast<int>(kRecvSpace));
  CHECK_EQUAL(turn.sideTake(kSideSpace), -1);
  turn.unmap();
}

/** @param which index of a section of a turn with two hands */
static void staysForATurn(size_t which) {
  Turn turn;
  CHECK(turn.map());
  CHECK(turn.divide(2));
  turn.begin();
  Section &section = turn.sections[which];
  const int first = section.take(section.size());
  CHECK(turn.inArena(first, static_cast<int>(section.size())));
  turn.begin();
  const int second = section.take(section.size());
  CHECK(second >= first + static_cast<int>(section.size()) || first >= second + static_cast<int>(section.size()));
  CHECK(turn.inArena(second, static_cast<int>(section.size())));
  turn.begin();
  CHECK_EQUAL(section.take(8), first);
  turn.unmap();
}

TEST(sections_halves, "with hands, the bytes of a turn stay while the next turn is filled") {
  for (const size_t which : {0, 1, 2}) staysForATurn(which);
}
