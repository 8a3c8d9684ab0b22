/* What only some kernels do, as completions that the kernel did not make. */
#include <errno.h>
#include <unistd.h>

#include "check.h"
#include "loop/uring_loop.h"
#include "world.h"

using namespace tsb;

/** The completion of a connection's receive, as far as the loop sees it. */
static void complete(World &world, int handle, int result, unsigned flags) {
  UringLane *lane = uringLane(world.streams->loop->lanes[0]);
  const Stream *s = world.streams->all[static_cast<size_t>(handle)];
  io_uring_cqe cqe = {};
  cqe.user_data = uringDataOf(s, kOpReceive);
  cqe.res = result;
  cqe.flags = flags;
  lane->underWay++;
  lane->ring.completions.push_back(cqe);
}

/* Kernels before 6.1 name the buffer that they had chosen for a receive, also if it failed. */
TEST(uring_failed_buffer, "io_uring: a receive that failed has no bytes, although it has a buffer") {
  World world(&kLoopUring);
  int peer;
  const int handle = world.open(&peer);
  const unsigned buffer = (kBufferCount - 1) << IORING_CQE_BUFFER_SHIFT | IORING_CQE_F_BUFFER;
  world.streams->all[static_cast<size_t>(handle)]->reading = true;
  streamRecvLimit(world.streams, handle, 1);
  complete(world, handle, -ECONNRESET, buffer);
  const std::vector<Event> events = world.turn();
  CHECK_EQUAL(events.size(), 1u);
  CHECK_EQUAL(events[0].result, -ECONNRESET);
  CHECK_EQUAL(world.streams->loop->lanes[0]->received, 0u);
  // between two turns, it is held for the next one
  streamRecvStop(world.streams, handle);
  complete(world, handle, -ECONNRESET, buffer);
  streamRecvStopAll(world.streams, 0);
  CHECK_EQUAL(streamBuffered(world.streams, handle), 0);
  streamRecvStart(world.streams, handle);
  CHECK_EQUAL(world.until(kRecv, handle).result, -ECONNRESET);
  close(peer);
}
