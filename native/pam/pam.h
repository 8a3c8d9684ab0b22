/*
 * PAM runs on its own thread, because a module may query a directory or sleep after a wrong password, and the loop must
 * not wait for it. One thread checks one login at a time, because not all modules are thread-safe, and the queue is bounded. A
 * finished login becomes one record of the loop. Passwords are overwritten after use.
 */
#pragma once

#include <string>
#include <vector>

namespace tsb {

struct Pam;
struct Turn;

struct PamLogin {
  /** chosen by the caller; the handle of the record */
  int id;
  std::string user;
  std::string password;
  /** the client's address */
  std::string rhost;
};

/** Opens libpam and starts the thread, which writes to wakeFd after each login. Returns '' or the reason of the failure. */
std::string pamOpen(int wakeFd, Pam **pam);
/** Asks the thread to end. It completes the login in progress, then frees everything. */
void pamEnd(Pam *pam);
/** Queues a copy of the login. Returns 0, -EAGAIN (the queue is full) or -ENOMEM. */
int pamSubmit(Pam *pam, const PamLogin &login);
/** Adds a record kAuthenticated (result 1 = allowed, 0 = refused) for each finished login. */
void pamReport(Pam *pam, Turn *turn);
/** Returns the error messages of a finished login, and removes its entry. */
std::vector<std::string> pamMessages(Pam *pam, int id);
/** Overwrites and empties a secret. */
void pamWipe(std::string *secret);

}  // namespace tsb
