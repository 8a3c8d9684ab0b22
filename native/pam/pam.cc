/*
 * Authentication by libpam, which is opened when it is first needed, so that machines without the library or its
 * headers build and run. See pam.h.
 */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <deque>
#include <new>

#include "loop/turn.h"
#include "pam/pam.h"

namespace tsb {

/* ---- libpam, as far as it is used; the layouts are those of Linux-PAM and OpenPAM ---- */

struct PamMessage {
  int style;
  const char *text;
};

struct PamResponse {
  char *text;
  int retcode;
};

struct PamConversation {
  int (*talk)(int, const PamMessage **, PamResponse **, void *);
  void *data;
};

constexpr int kPamSuccess = 0;
constexpr int kPamPromptEchoOff = 1;
constexpr int kPamErrorMsg = 3;
constexpr int kPamRhost = 4;
#ifdef __linux__
constexpr int kPamConvErr = 19;
constexpr int kPamSilent = 0x8000;
static const char *const kLibraries[] = {"libpam.so.0", "libpam.so"};
#else
constexpr int kPamConvErr = 6;
constexpr int kPamSilent = static_cast<int>(0x80000000u);
static const char *const kLibraries[] = {"libpam.2.dylib", "libpam.so.6", "libpam.so.5", "libpam.so"};
#endif

/** Name of the service: the rules are in /etc/pam.d/pgbouncer. */
static const char kService[] = "pgbouncer";
/** Most logins that wait or are being checked. */
constexpr size_t kPamQueueMax = 20;

struct PamLibrary {
  int (*start)(const char *, const char *, const PamConversation *, void **);
  int (*setItem)(void *, int, const void *);
  int (*authenticate)(void *, int);
  int (*acctMgmt)(void *, int);
  int (*end)(void *, int);
  const char *(*strerror)(void *, int);
};

/* ---- requests ---- */

struct PamRequest {
  PamLogin login;
  bool allowed = false;
  std::vector<std::string> messages;
};

/** Shared by the loop's thread and the PAM thread, which frees it when it ends. */
struct Pam {
  PamLibrary library;
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t work = PTHREAD_COND_INITIALIZER;
  std::deque<PamRequest *> waiting;
  std::deque<PamRequest *> done;
  /** the record has been added; kept until pamMessages fetches the messages */
  std::deque<PamRequest *> reported;
  /** the environment has ended: start no further login */
  bool ended = false;
  bool busy = false;
  int wakeFd = -1;
};

/** `volatile`, because the compiler drops writes to memory that is never read again. */
void pamWipe(std::string *secret) {
  volatile char *p = secret->empty() ? nullptr : &(*secret)[0];
  for (size_t i = 0; i < secret->size(); i++) p[i] = 0;
  secret->clear();
}

static void drop(PamRequest *request) {
  pamWipe(&request->login.password);
  delete request;
}

static void dropAll(std::deque<PamRequest *> *requests) {
  for (PamRequest *request : *requests) drop(request);
  requests->clear();
}

static void release(Pam *pam) {
  dropAll(&pam->waiting);
  dropAll(&pam->done);
  dropAll(&pam->reported);
  delete pam;
}

/* ---- the thread ---- */

/** Answers every prompt that hides its input with the password. */
static int talk(int count, const PamMessage **messages, PamResponse **responses, void *data) {
  PamRequest *request = static_cast<PamRequest *>(data);
  if (count < 1 || !messages || !request) return kPamConvErr;
  PamResponse *answers = static_cast<PamResponse *>(calloc(static_cast<size_t>(count), sizeof(PamResponse)));
  if (!answers) {
    request->messages.push_back("pam_conversation(): not enough memory for responses");
    return kPamConvErr;
  }
  for (int i = 0; i < count; i++) {
    if (messages[i]->style == kPamPromptEchoOff) {
      answers[i].text = strdup(request->login.password.c_str());
      if (answers[i].text) continue;
      request->messages.push_back("pam_conversation(): not enough memory for password");
      for (int j = 0; j < i; j++) free(answers[j].text);
      free(answers);
      return kPamConvErr;
    }
    if (messages[i]->style == kPamErrorMsg && messages[i]->text)
      request->messages.push_back(std::string("pam_conversation(): PAM error: ") + messages[i]->text);
  }
  *responses = answers;
  return kPamSuccess;
}

static void failed(const PamLibrary &lib, PamRequest *request, const char *call, void *pam, int rc) {
  const char *text = lib.strerror(pam, rc);
  request->messages.push_back(std::string(call) + " failed: " + (text ? text : "unknown error"));
}

static bool checkPassword(const PamLibrary &lib, PamRequest *request) {
  PamConversation conversation = {talk, request};
  void *pam = nullptr;
  int rc = lib.start(kService, request->login.user.c_str(), &conversation, &pam);
  if (rc != kPamSuccess) {
    failed(lib, request, "pam_start()", nullptr, rc);
    return false;
  }
  // some modules decide by the client's address, and log it
  rc = lib.setItem(pam, kPamRhost, request->login.rhost.c_str());
  if (rc != kPamSuccess) {
    request->messages.push_back("pam_set_item(): can't set PAM_RHOST to '" + request->login.rhost + "'");
    lib.end(pam, rc);
    return false;
  }
  rc = lib.authenticate(pam, kPamSilent);
  if (rc != kPamSuccess) {
    failed(lib, request, "pam_authenticate()", pam, rc);
    lib.end(pam, rc);
    return false;
  }
  // the password is right; the account may still be locked or expired
  rc = lib.acctMgmt(pam, kPamSilent);
  if (rc != kPamSuccess) {
    failed(lib, request, "pam_acct_mgmt()", pam, rc);
    lib.end(pam, rc);
    return false;
  }
  rc = lib.end(pam, rc);
  if (rc != kPamSuccess) failed(lib, request, "pam_end()", nullptr, rc);
  return true;
}

static void *threadMain(void *data) {
  Pam *pam = static_cast<Pam *>(data);
  pthread_mutex_lock(&pam->mutex);
  while (!pam->ended) {
    if (pam->waiting.empty()) {
      pthread_cond_wait(&pam->work, &pam->mutex);
      continue;
    }
    PamRequest *request = pam->waiting.front();
    pam->waiting.pop_front();
    pam->busy = true;
    pthread_mutex_unlock(&pam->mutex);
    request->allowed = checkPassword(pam->library, request);
    pamWipe(&request->login.password);
    pthread_mutex_lock(&pam->mutex);
    pam->busy = false;
    pam->done.push_back(request);
    if (pam->ended) break;
    const uint64_t one = 1;
    // a write that fails because the counter is full needs no retry: the loop is woken anyway
    const ssize_t written = write(pam->wakeFd, &one, sizeof(one));
    (void)written;
  }
  pthread_mutex_unlock(&pam->mutex);
  release(pam);
  return nullptr;
}

/** The thread blocks all signals, because the loop handles them. Returns 0 or an error number. */
static int startThread(Pam *pam) {
  pthread_t thread;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int err = pthread_create(&thread, nullptr, threadMain, pam);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (err == 0) pthread_detach(thread);
  return err;
}

/* ---- opening ---- */

template <typename F>
static bool symbol(void *library, const char *name, F *function) {
  *function = reinterpret_cast<F>(dlsym(library, name));
  return *function != nullptr;
}

/** RTLD_GLOBAL, because PAM modules need the library's symbols too. Returns '' or the reason of the failure. */
static std::string openLibrary(PamLibrary *lib) {
  std::string error;
  for (const char *name : kLibraries) {
    void *library = dlopen(name, RTLD_NOW | RTLD_GLOBAL);
    if (!library) {
      const char *text = dlerror();
      if (error.empty() && text) error = text;
      continue;
    }
    if (symbol(library, "pam_start", &lib->start) && symbol(library, "pam_set_item", &lib->setItem) &&
        symbol(library, "pam_authenticate", &lib->authenticate) && symbol(library, "pam_acct_mgmt", &lib->acctMgmt) &&
        symbol(library, "pam_end", &lib->end) && symbol(library, "pam_strerror", &lib->strerror))
      return std::string();
    error = std::string(name) + " lacks what is needed";
    dlclose(library);
  }
  return error.empty() ? "no such library" : error;
}

std::string pamOpen(int wakeFd, Pam **opened) {
  Pam *pam = new (std::nothrow) Pam();
  if (!pam) return strerror(ENOMEM);
  std::string error = openLibrary(&pam->library);
  pam->wakeFd = wakeFd;
  if (error.empty()) {
    const int err = startThread(pam);
    if (err != 0) error = strerror(err);
  }
  if (error.empty())
    *opened = pam;
  else
    delete pam;
  return error;
}

void pamEnd(Pam *pam) {
  if (!pam) return;
  pthread_mutex_lock(&pam->mutex);
  pam->ended = true;
  pam->wakeFd = -1;
  pthread_cond_signal(&pam->work);
  pthread_mutex_unlock(&pam->mutex);
}

/* ---- for the loop's thread ---- */

int pamSubmit(Pam *pam, const PamLogin &login) {
  PamRequest *request = new (std::nothrow) PamRequest();
  if (!request) return -ENOMEM;
  request->login = login;
  pthread_mutex_lock(&pam->mutex);
  const bool room = pam->waiting.size() + (pam->busy ? 1 : 0) < kPamQueueMax;
  if (room) {
    pam->waiting.push_back(request);
    pthread_cond_signal(&pam->work);
  }
  pthread_mutex_unlock(&pam->mutex);
  if (!room) drop(request);
  return room ? 0 : -EAGAIN;
}

void pamReport(Pam *pam, Turn *turn) {
  pthread_mutex_lock(&pam->mutex);
  while (!pam->done.empty()) {
    PamRequest *request = pam->done.front();
    pam->done.pop_front();
    pam->reported.push_back(request);
    turn->add(kAuthenticated, request->login.id, request->allowed ? 1 : 0, 0);
  }
  pthread_mutex_unlock(&pam->mutex);
}

std::vector<std::string> pamMessages(Pam *pam, int id) {
  std::vector<std::string> messages;
  for (auto at = pam->reported.begin(); at != pam->reported.end(); ++at) {
    PamRequest *request = *at;
    if (request->login.id != id) continue;
    messages.swap(request->messages);
    pam->reported.erase(at);
    drop(request);
    break;
  }
  return messages;
}

}  // namespace tsb
