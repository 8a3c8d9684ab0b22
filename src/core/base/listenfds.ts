/*
 * Socket activation: listening sockets that the service manager opened and passed on, as sd_listen_fds() finds them.
 */

/** The first of them, by convention. */
export const LISTEN_FDS_START = 3;

let count = -1;

/** How many there are, from LISTEN_FDS_START on; 0 when the variables are meant for another process. */
export function listenFdCount(): number {
  if (count >= 0) return count;
  const { LISTEN_PID, LISTEN_FDS } = process.env;
  const given = Number(LISTEN_PID) === process.pid ? Number(LISTEN_FDS) : 0;
  count = Number.isInteger(given) && given > 0 ? given : 0;
  // a process that we start must not take them for its own
  delete process.env.LISTEN_PID;
  delete process.env.LISTEN_FDS;
  delete process.env.LISTEN_FDNAMES;
  return count;
}
