/* Which lane a stream belongs to, and who works on it. See stream.h. */
#include <time.h>

#include "loop/stream.h"

namespace tsb {

/** In usec: the period that is measured, and how long little has to be used before the hands end. */
constexpr double kDutyPeriod = 100e3;
constexpr double kDutyCalm = 2e6;
/** Records of an average turn from which on hands have something to share, and below which they have not. */
constexpr double kDutyRecords = 4;
constexpr double kDutyRecordsLeast = 1.5;

void laneAdd(Loop *loop, Lane *lane) {
  lane->turn = loop->turn;
  lane->section = &loop->turn->sections[loop->lanes.size()];
  lane->recvMax = static_cast<size_t>(loop->options.recvMax);
  loop->lanes.push_back(lane);
}

/* Listeners and watches stay with the thread that calls wait(): what they bring is not much, and may run code of libuv. */
void laneJoin(Loop *loop, Stream *s, bool ofHand) {
  Lane *chosen = loop->lanes[0];
  if (ofHand && s->kind == StreamKind::kConnection)
    for (Lane *lane : loop->lanes)
      if (lane != loop->lanes[0] && (chosen == loop->lanes[0] || lane->streams < chosen->streams)) chosen = lane;
  chosen->streams++;
  s->lane = chosen;
}

void laneLeave(Stream *s) { s->lane->streams--; }

namespace {

struct Task {
  const Loop *loop;
  void (*work)(Lane *lane);
};

void workOfHand(void *context, int hand) {
  const Task *task = static_cast<const Task *>(context);
  task->work(task->loop->lanes[static_cast<size_t>(hand) + 1]);
}

}  // namespace

void lanesWork(Loop *loop, bool (*busy)(const Lane *lane), void (*work)(Lane *lane)) {
  uint64_t which = 0;
  for (size_t i = 1; i < loop->lanes.size(); i++)
    if (busy(loop->lanes[i])) which |= 1ull << (i - 1);
  Task task = {loop, work};
  if (which != 0) loop->hands->fork(which, workOfHand, &task);
  if (busy(loop->lanes[0])) work(loop->lanes[0]);
  if (which != 0) loop->hands->join();
}

void dutyUpdate(Loop *loop, double nowUsec) {
  if (!loop->hands || loop->options.handsLoad == 0) return;
  Duty *duty = &loop->duty;
  duty->turns++;
  duty->records += loop->turn->count();
  const double passed = nowUsec - duty->since;
  if (passed < kDutyPeriod) return;
  const double main = clockUsec(CLOCK_THREAD_CPUTIME_ID);
  double all = main;
  for (int i = 0; i < loop->hands->count(); i++) all += loop->hands->cpuUsec(i);
  const double load = loop->options.handsLoad / 100.0;
  const double records = duty->records / duty->turns;
  const bool calm = all - duty->cpuAll < load / 2 * passed || records < kDutyRecordsLeast;
  if (!duty->on) {
    duty->on = main - duty->cpuMain >= load * passed && records >= kDutyRecords;
    duty->calmSince = 0;
  } else if (!calm) {
    duty->calmSince = 0;
  } else if (duty->calmSince == 0) {
    duty->calmSince = duty->since;
  }
  if (duty->calmSince > 0 && nowUsec - duty->calmSince >= kDutyCalm) duty->on = false;
  duty->turns = duty->records = 0;
  duty->since = nowUsec;
  duty->cpuMain = main;
  duty->cpuAll = all;
}

void laneCall(const Loop *loop, Lane *lane, void (*work)(Lane *lane)) {
  for (size_t i = 1; i < loop->lanes.size(); i++) {
    if (loop->lanes[i] != lane) continue;
    Task task = {loop, work};
    loop->hands->fork(1ull << (i - 1), workOfHand, &task);
    loop->hands->join();
    return;
  }
  work(lane);
}

}  // namespace tsb
