/*
 * The native facade: the only file that loads the addon. Handles are small integers, bytes live in one arena that
 * TypeScript reads in place, and one call waits. Nothing here is owned by the garbage collector, because on a thread
 * that never yields no finalizer ever runs.
 */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';

/** What a ready record says happened. */
export const enum Ev {
  /** a connection was accepted: handle = listener, result = new fd (non-blocking, close-on-exec) or -errno, offset = 1
   *  when the listener is a Unix socket. After an error stop the listener for a while: it comes again every turn. */
  ACCEPT = 1,
  /** an outgoing connect ended: result = 0 or -errno; the handle stays, to be closed by the caller */
  CONNECT = 2,
  /** bytes arrived: result = byte count (at most kept bytes + recvMax), offset = where in the arena; result 0 = end of
   *  file; < 0 = -errno. At most one per handle and turn. After an end or an error receiving has stopped by itself. */
  RECV = 3,
  /** queued output is all written (result 0) or failed and was dropped (result = -errno) */
  DRAIN = 4,
  /** a signal: handle = signal number */
  SIGNAL = 5,
  /** somebody wrote to the wake-up descriptor (several writes may give one record) */
  WAKE = 6,
  /** a name was resolved: handle = request id given by resolve(), result = number of addresses or an EAI_ code < 0 */
  RESOLVED = 7,
  /** a watched descriptor is readable (handle from watchFd): once a turn for as long as it is */
  READABLE = 8,
  /** a TLS handshake ended: result 0 = done, from now on RECV delivers decrypted bytes; < 0 = failed (see tlsError), the
   *  handle stays, to be closed by the caller */
  TLS = 9,
  /** PAM is done with a login: handle = the id given to pamSubmit, result = 1 (allowed) or 0; pamMessages() ends it */
  AUTHENTICATED = 16,
}

/** int32 fields of one ready record in the ring. */
export const enum Rec {
  KIND = 0,
  HANDLE = 1,
  RESULT = 2,
  OFFSET = 3,
  SIZE = 4,
}

/** Address families as the facade names them. */
export const enum Family {
  UNIX = 1,
  INET = 4,
  INET6 = 6,
}

/** Which end of a TLS connection a context is for. */
export const enum TlsRole {
  CONNECT = 0,
  ACCEPT = 1,
}

/** How a TLS context looks at the peer's certificate. */
export const enum TlsVerify {
  NONE = 0,
  /** accepting: one that is shown must be valid */
  OPTIONAL = 1,
  /** there must be a valid one */
  REQUIRED = 2,
  /** connecting: and it must carry the host name */
  NAME = 3,
}

/** What a TLS context is made from; byte strings, '' = OpenSSL's default. */
export interface TlsContextOptions {
  /** bits 1 to 4: TLS 1.0 to 1.3 */
  protocols: number;
  verify: TlsVerify;
  /** cipher list of TLS 1.2 and older, in OpenSSL's language; 'default', 'secure', 'normal', 'fast' are the default too */
  ciphers: string;
  ciphers13: string;
  /** 'auto', 'none' or a curve's name */
  curve: string;
  /** 1: DH parameters of a size that fits the key */
  dhAuto: number;
  keyFile: string;
  certFile: string;
  /** authorities; default those of the system */
  caFile: string;
}

/** What is known of a TLS connection. */
export interface TlsInfo {
  /** 'TLSv1.3' */
  version: string;
  /** the suite, in OpenSSL's spelling */
  cipher: string;
  /** 'ECDH=X25519', 'DH=2048' or '' */
  exchange: string;
  /** sequence number of the next record, each way, under the present keys */
  recordsRead: number;
  recordsWritten: number;
  keyUpdatesRead: number;
  keyUpdatesWritten: number;
  /** length of the secret that the keys come from */
  secretBytes: number;
}

/** One socket address. `port` is 0 for Unix sockets; `host` is then the path ('@' in front = abstract). */
export interface SockAddr {
  family: Family;
  host: string;
  port: number;
}

/**
 * What a call returns must be looked at, which `npm run results` checks. Calls on a handle that can fail only for reasons
 * of the kernel's (no memory, no room in its tables) return nothing: the handle's next record tells of it instead, as
 * RECV, DRAIN, CONNECT, TLS or ACCEPT with a negative result, and so ends the connection where every other error does.
 */
export interface Native {
  /** every received byte of this turn lies here; valid until the next wait() */
  arena: ArrayBuffer;
  /** Int32 records, Rec.SIZE each; the last 8 bytes are a double, the wall clock in usec at the end of the last wait() */
  ring: ArrayBuffer;

  /**
   * Makes the loop of this environment. `backend` is 'libuv' (others later). `recvMax` = most bytes of one receive.
   * Returns the backend's name. Throws when called twice or when the backend is unknown. recvMax is brought into
   * 1 KB .. 1 MB.
   */
  loopInit(backend: string, recvMax: number): string;
  /** 'libuv 1.46.0' and so on, for -V */
  libuvVersion(): string;
  /** Submits what was queued, waits up to timeoutMs (-1 = no limit, 0 = do not block), returns the number of ready
   *  records. Throws before loopInit. */
  wait(timeoutMs: number): number;
  /** Makes a wait() in progress or the next one return at once. */
  loopBreak(): void;
  /** eventfd that other threads write 8 bytes to in order to wake the loop (Ev.WAKE) */
  wakeFd(): number;
  /** Starts delivering Ev.SIGNAL for a signal number, over whatever handler Node has. Returns 0 or -errno. */
  signalStart(signum: number): number;

  /** Wraps a connected socket; makes it non-blocking; not reading yet. Returns a handle > 0 (0 is never one) or
   *  -errno. */
  open(fd: number): number;
  /** An unconnected, non-blocking socket, for options that have to be set before connect(). Returns fd or -errno. */
  socket(family: Family): number;
  /** Starts connecting; Ev.CONNECT follows on a later turn, even when the kernel is done at once. Bytes of `host`: numeric
   *  IPv4/IPv6, or a Unix path. `fd`: from socket(), taken over in every case; without it one is made. Returns handle or -errno. */
  connect(family: Family, host: string, port: number, fd?: number): number;
  /** A listening socket: starts (1) or stops (0) accepting. Handle from listenOpen. */
  listenStart(handle: number, on: number): void;
  /** Wraps a listening fd; not accepting yet. Returns a handle > 0 or -errno. */
  listenOpen(fd: number): number;
  /** Watches a descriptor for readability without reading it (Ev.READABLE); makes it non-blocking; close() forgets it
   *  without closing the fd. Returns a handle > 0 or -errno (-EPERM for regular files). */
  watchFd(fd: number): number;
  /** the descriptor behind a handle, or -EBADF */
  fdOf(handle: number): number;
  /** Forgets the handle, closes the descriptor, drops kept and unsent bytes. Records of it that are still in the ring
   *  must be ignored by the caller. Handle numbers are reused only after the next wait(). */
  close(handle: number): void;
  /** Forgets the handle and gives the descriptor back, open (or -EBADF). Take kept and unsent bytes first: they are
   *  dropped. */
  detach(handle: number): number;

  /** Starts receiving. Bytes kept earlier are delivered first, on the next turn, whether or not more arrive. Nothing
   *  happens when it is receiving already. */
  recvStart(handle: number): void;
  /** 1 when the stream of a handle that is not being received from has ended or broken, with nothing to receive before
   *  that; else 0, or -EBADF. Of a plain connection it is what the last wait() found out; of one with TLS the socket is
   *  asked. */
  ended(handle: number): number;
  /** Stops receiving; nothing is delivered until recvStart. Costs no system call. */
  recvStop(handle: number): void;
  /** recvStop() on every stream but that one, for the handover. Returns the handles that have unsent bytes. */
  recvStopAll(except: number): number[];
  /** The next receive that brings bytes brings at most `most` (0 = no limit), and then the limit is gone: for stopping at
   *  the end of a packet. Plain connections only; kept bytes do not count. */
  recvLimit(handle: number, most: number): void;
  /** Gives back the unprocessed tail of the bytes just delivered: they come again in front of what arrives next (alone
   *  only after recvStop and recvStart). Several calls append. More than 1 MB kept makes the next delivery -EMSGSIZE, and
   *  bytes that find no memory make it -ENOMEM. */
  keep(handle: number, offset: number, length: number): void;
  /** Copies the kept bytes into the arena and forgets them: returns their offset, -1 when there are none, or -ENOBUFS
   *  when 2 MB were taken in this turn already (they stay kept); keptLength() before tells how many. */
  takeKept(handle: number): number;
  keptLength(handle: number): number;
  /** A copy of the kept bytes, which stay kept; null when memory is exhausted. */
  copyKept(handle: number): Uint8Array | null;
  /** Like keep(), from any Uint8Array: bytes that another process received for this handle. */
  keepBytes(handle: number, bytes: Uint8Array): number;

  /** Sends bytes of the arena: at once as far as the socket takes them, the rest is queued. Returns the number of
   *  bytes now queued (0 = all sent; else Ev.DRAIN follows) or -errno (-ENOBUFS: more than 256 MB queued, -EFAULT:
   *  outside the arena). */
  send(handle: number, offset: number, length: number): number;
  /** Likewise from any Uint8Array (Buffer). */
  sendBytes(handle: number, bytes: Uint8Array, offset: number, length: number): number;
  /** bytes queued and not sent yet, or -EBADF */
  unsent(handle: number): number;
  /** Takes the queued bytes away from a handle (handover); no Ev.DRAIN follows. With TLS they are encrypted already. */
  takeUnsent(handle: number): Uint8Array;

  /** A TLS context. Throws Error whose message is the original's. Returns an id > 0. */
  tlsCtxNew(role: TlsRole, options: TlsContextOptions): number;
  /** Forgets a context; connections made with it live on. 0 and unknown ids are passed over. */
  tlsCtxFree(id: number): void;
  /** whether OpenSSL knows a cipher list (TLS 1.2 and older) or a curve */
  tlsKnown(what: 'ciphers' | 'curve', value: string): boolean;
  /** Puts TLS on an open handle as the accepting end; Ev.TLS follows, whether receiving is on or not. Bytes of the
   *  handshake that have been received already (at most 32 KB) are given as a piece of the arena. Until the handshake is
   *  done send() is -EIO; before it, all that was sent goes out plain. Returns 0, -EBADF (no stream, or TLS already),
   *  -EINVAL (no such context), -EMSGSIZE, -EFAULT or -ENOMEM. */
  tlsAccept(handle: number, context: number, offset: number, length: number): number;
  /** Likewise as the connecting end. `host`: the name to announce and to look for in the certificate, '' = none (-EINVAL
   *  when the context verifies names). */
  tlsConnect(handle: number, context: number, host: string): number;
  /** why a handshake, or receiving on a TLS handle, failed; '' when it did not */
  tlsError(handle: number): string;
  /** null on a plain handle */
  tlsInfo(handle: number): TlsInfo | null;
  tlsPeerCertProvided(handle: number): boolean;
  /** null without a certificate */
  tlsPeerCertSubject(handle: number): string | null;
  tlsPeerCertContainsName(handle: number, name: string): boolean;

  /** Resolves a host name off the loop (getaddrinfo, SOCK_STREAM). Returns a request id > 0 (or -errno); Ev.RESOLVED
   *  follows. Every finished request must be ended by resolveResult or resolveCancel. */
  resolve(name: string): number;
  /** Addresses of a finished request (numeric hosts, port 0), in getaddrinfo's order; forgets the request. */
  resolveResult(id: number): SockAddr[];
  /** Forgets a request, finished or not; no Ev.RESOLVED follows unless it is in the ring already. */
  resolveCancel(id: number): void;

  /** Opens libpam and starts its thread, once; needs loopInit. Returns '' or why there is no PAM here. */
  pamOpen(): string;
  /** Queues a login for PAM; Ev.AUTHENTICATED follows with this id. Returns 0, -EAGAIN (20 are waiting) or -ENOSYS. */
  pamSubmit(id: number, user: string, password: string, rhost: string): number;
  /** What went wrong in a finished login, for the log; forgets it. */
  pamMessages(id: number): string[];

  /* posix: no loop involved; -errno on failure unless said otherwise */
  /** Blocking getaddrinfo with AI_PASSIVE for listen_addr; host null = any. Throws Error with .message and .code =
   *  the gai_strerror text, .errno = the EAI_ number. */
  getaddrinfoPassive(host: string | null, port: number): SockAddr[];
  /** socket+options+bind+listen. reuseport/deferAccept 0|1. Returns fd, or throws Error with .syscall ('bind'...) and
   *  .errno. */
  listenTcp(addr: SockAddr, backlog: number, reuseport: number): number;
  listenUnix(path: string, backlog: number): number;
  /** Close-on-exec, non-blocking and TCP options, as tune_socket: keepalive family in seconds, user timeout in ms,
   *  buffer in bytes (0 = leave alone); TCP_NODELAY always. Throws with .syscall (the step as the original logs it:
   *  'setsockopt/TCP_NODELAY'...) and .errno. isUnix = only close-on-exec and non-blocking. */
  tuneSocket(
    fd: number,
    isUnix: boolean,
    keepalive: number,
    keepidle: number,
    keepintvl: number,
    keepcnt: number,
    userTimeout: number,
    bufferSize: number,
  ): void;
  /** TCP_DEFER_ACCEPT on a listener. 0 or -errno. */
  deferAccept(fd: number, on: number): number;
  /** Local address; throws with .syscall and .errno. Unix: host = path, '' when unnamed. */
  sockName(fd: number): SockAddr;
  /** Peer's address, likewise. */
  peerName(fd: number): SockAddr;
  /** SO_PEERCRED: [uid, gid, pid] or null */
  peerCred(fd: number): [number, number, number] | null;
  /** connects to a Unix socket only to see whether somebody listens; never blocks */
  unixProbe(path: string): boolean;
  /** connected blocking Unix sockets, close-on-exec; throws with .syscall and .errno */
  socketPair(): [number, number];
  closeFd(fd: number): void;
  /** The clock of every deadline, uncached, in usec; only time.ts asks. */
  readClock(): number;
  /** What the wall clock is ahead of it at this moment, in usec; only time.ts asks. */
  wallOffset(): number;
  dup2(from: number, to: number): number;
  setsid(): number;
  /** [soft, hard] of RLIMIT_NOFILE; -1 = unlimited */
  rlimitNofile(): [number, number];
  /** numbers of the CPUs that this thread may run on; empty where that cannot be told */
  cpuAffinity(): number[];
  /** Lets every thread of this process run on those CPUs only. Returns 0 or -errno. */
  setCpuAffinity(cpus: number[]): number;
  /** strerror text */
  strerror(errno: number): string;
  /** gai_strerror text */
  gaiStrerror(code: number): string;
  /** uid, gid of a user name, or null */
  getpwnam(name: string): { uid: number; gid: number } | null;
  getpwuid(uid: number): string | null;
  /** gid of a group name or -1 */
  getgrnam(name: string): number;
  chown(path: string, uid: number, gid: number): number;
  /** An unknown facility opens the log as daemon, as the original does. */
  openlog(ident: string, facility: string): void;
  syslog(priority: number, text: string): void;
  closelog(): void;
  /** Blocks until a descriptor is readable (forWrite 0) or writable (1), whatever signals arrive. Returns 1, 0 after
   *  timeoutMs (-1 = for ever), or -errno. */
  pollFd(fd: number, forWrite: number, timeoutMs: number): number;
  /** Of what was sent on a Unix socket, what the peer has not read yet, with the kernel's overhead. Or -errno. */
  unreadBytes(fd: number): number;
  /** Makes the peer's further sends fail; what it has sent already can still be received. */
  refuseMore(fd: number): void;
  /** Stops the thread for a while: only where nobody is served, as in a handover. Signals do not shorten it. */
  sleepMs(ms: number): void;
  /** Sends one datagram to a Unix socket ('@' in front = abstract). Returns 0 or -errno. */
  sendDatagram(path: string, text: string): number;
  /** Sends bytes (at least one) with up to 250 descriptors as SCM_RIGHTS. Returns bytes sent or -errno. */
  sendFds(fd: number, bytes: Uint8Array, fds: number[]): number;
  /** Receives up to max bytes (1 MB) and any descriptors (close-on-exec). result = byte count, 0 at the end, or
   *  -errno */
  recvFds(fd: number, max: number): { result: number; bytes: Uint8Array; fds: number[] };
}

/** Walks up to the package's root, because this file is compiled into more than one folder. */
function findAddon(): string {
  const name = join('build', 'Release', 'tsbouncer.node');
  let dir = __dirname;
  while (!existsSync(join(dir, name)) && dirname(dir) !== dir) dir = dirname(dir);
  return join(dir, name);
}

/** The addon's functions, for this environment (thread). */
export const native: Native = require(findAddon()) as Native;

/** Every received byte of the turn, read in place. */
export const arena: Buffer = Buffer.from(native.arena);
/** The ready records of the turn. */
export const ring: Int32Array = new Int32Array(native.ring, 0, (native.ring.byteLength - 8) / 4);
/** One element: what readClock() returned at the end of the last wait(). */
export const waitClock: Float64Array = new Float64Array(native.ring, native.ring.byteLength - 8, 1);
