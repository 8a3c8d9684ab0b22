/*
 * The native facade, the only file that loads the addon. Handles are small integers, received bytes lie in one arena
 * that TypeScript reads in place, and only wait() blocks. The garbage collector owns nothing here: the loop thread
 * never yields, so finalizers would never run on it.
 */
import { findAddon } from './addon-file';

/** The kind of a ready record. */
export const enum Ev {
  /**
   * a connection was accepted: handle = listener, result = new fd (non-blocking, close-on-exec) or -errno, offset = 1
   * when the listener is a Unix socket. After an error, stop the listener for a while: the error is reported every
   * turn.
   */
  ACCEPT = 1,
  /** an outgoing connect finished: result = 0 or -errno; on failure too, the caller closes the handle */
  CONNECT = 2,
  /**
   * bytes arrived: result = byte count (at most kept bytes + recvMax), offset = position in the arena; result 0 = end
   * of file; < 0 = -errno. At most one record per handle and turn. An end of file or an error stops receiving.
   */
  RECV = 3,
  /** all queued output has been written (result 0), or writing failed and the output was dropped (result = -errno) */
  DRAIN = 4,
  /** a signal: handle = signal number */
  SIGNAL = 5,
  /** the wake-up descriptor was written to (several writes may give one record) */
  WAKE = 6,
  /** a name was resolved: handle = request id from resolve(), result = number of addresses or an EAI_ code < 0 */
  RESOLVED = 7,
  /** a watched descriptor is readable (handle from watchFd): repeated every turn while it is */
  READABLE = 8,
  /**
   * a TLS handshake finished: result 0 = success, RECV delivers decrypted bytes from now on; < 0 = failure (see
   * tlsError), the caller closes the handle
   */
  TLS = 9,
  /** PAM decided a login: handle = the id given to pamSubmit, result = 1 (allowed) or 0; free it with pamMessages() */
  AUTHENTICATED = 16,
}

/** The int32 fields of one ready record in the ring. */
export const enum Rec {
  KIND = 0,
  HANDLE = 1,
  RESULT = 2,
  OFFSET = 3,
  SIZE = 4,
}

/** Address families in the facade's numbering. */
export const enum Family {
  UNIX = 1,
  INET = 4,
  INET6 = 6,
}

/** The role in the handshake that a TLS context is for. */
export const enum TlsRole {
  CONNECT = 0,
  ACCEPT = 1,
}

/** How a TLS context verifies the peer's certificate. */
export const enum TlsVerify {
  NONE = 0,
  /** accepting: a certificate is optional, but must be valid if present */
  OPTIONAL = 1,
  /** a valid certificate is required */
  REQUIRED = 2,
  /** connecting: it must also match the host name */
  NAME = 3,
}

/** The settings of a TLS context; byte strings, '' = OpenSSL's default. */
export interface TlsContextOptions {
  /** bits 1 to 4: TLS 1.0 to 1.3 */
  protocols: number;
  verify: TlsVerify;
  /** cipher list of TLS 1.2 and older in OpenSSL's syntax; 'default', 'secure', 'normal', 'fast' = the default */
  ciphers: string;
  ciphers13: string;
  /** 'auto', 'none' or a curve's name */
  curve: string;
  /** 1: DH parameters of a size that matches the key */
  dhAuto: number;
  keyFile: string;
  certFile: string;
  /** CA certificates; default: the system's */
  caFile: string;
}

/** The state of a TLS connection. */
export interface TlsInfo {
  /** 'TLSv1.3' */
  version: string;
  /** the cipher suite, in OpenSSL's spelling */
  cipher: string;
  /** 'ECDH=X25519', 'DH=2048' or '' */
  exchange: string;
  /** sequence number of the next record in each direction, under the current keys */
  recordsRead: number;
  recordsWritten: number;
  keyUpdatesRead: number;
  keyUpdatesWritten: number;
  /** length of the secret that the keys are derived from */
  secretBytes: number;
}

/** What a thread has done since the loop began. */
export interface ThreadUse {
  /** 'main' calls wait(), 'io' moves bytes, 'tls' takes steps of handshakes */
  kind: string;
  /** turns in which it had something to do; steps of handshakes */
  turns: number;
  /** connections, listeners and watches that belong to it now */
  handles: number;
  /** bytes */
  received: number;
  sent: number;
  cpuUsec: number;
}

/** A socket address. For Unix sockets, `port` is 0 and `host` is the path ('@' in front = abstract). */
export interface SockAddr {
  family: Family;
  host: string;
  port: number;
}

/**
 * Callers must check every result, as `npm run results` verifies. Some calls on a handle can fail only for the kernel's
 * own reasons (no memory, no room in its tables); they return nothing. The handle's next record (RECV, DRAIN, CONNECT,
 * TLS or ACCEPT) then reports the failure as a negative result, so the connection ends where all other errors end it.
 */
export interface Native {
  /** all bytes received in this turn; valid until the next wait() */
  arena: ArrayBuffer;
  /** Int32 records of Rec.SIZE fields each; the last 8 bytes are a double, readClock() at the end of the last wait() */
  ring: ArrayBuffer;

  /**
   * Creates the loop of this environment. `backend`: 'epoll'; 'uring', or 'auto', which is io_uring where the kernel
   * allows it, else epoll. `recvMax` = most bytes of one receive, clamped to 1 KB .. 1 MB. `threads` = threads that
   * move bytes while wait() waits for them, 0 .. 64; they begin when this thread uses `load` percent of a CPU, and end
   * when all together use less than half of that. `handshakeThreads` = threads for TLS handshakes, 0 .. 64. Returns the
   * name of the backend in use. Throws when called twice or when the backend is unknown. Call startLoop(), which knows
   * about the arena.
   */
  loopInit(backend: string, recvMax: number, threads?: number, load?: number, handshakeThreads?: number): string;
  /** the arena, with the part that the threads of loopInit() fill */
  loopArena(): ArrayBuffer;
  /** the thread that calls wait(), and then the others, of each kind in their order; [] before loopInit() */
  loopThreads(): ThreadUse[];
  /** why loopInit() did not use io_uring although it was asked to; else '' */
  loopRefusal(): string;
  /** for example 'libuv 1.46.0', for -V */
  libuvVersion(): string;
  /**
   * Submits queued operations, waits up to timeoutMs (-1 = no limit, 0 = do not block) and returns the number of ready
   * records. Throws before loopInit.
   */
  wait(timeoutMs: number): number;
  /**
   * Walks over the complete packets at [offset, end) of the arena that have the type of the first one and are shorter
   * than `most` bytes. Returns the offset behind them.
   */
  samePackets(offset: number, end: number, most: number): number;
  /**
   * Before the process ends: sends what is queued for the next wait(), ends what is under way in the kernel, and wipes the
   * secrets of TLS connections that another process owns.
   */
  loopEnd(): void;
  /** Makes the current or the next wait() return at once. */
  loopBreak(): void;
  /** eventfd that wakes the loop (Ev.WAKE) when another thread writes 8 bytes to it */
  wakeFd(): number;
  /** Starts delivering Ev.SIGNAL for a signal number, replacing any handler of Node. Returns 0 or -errno. */
  signalStart(signum: number): number;

  /** Wraps a connected socket and makes it non-blocking; does not start receiving. Returns a handle > 0 or -errno. */
  open(fd: number): number;
  /** Likewise, for a connection that was just accepted (Ev.ACCEPT). Tells its addresses in acceptedNames. */
  openAccepted(fd: number): number;
  /** An unconnected, non-blocking socket, for options that must be set before connect(). Returns fd or -errno. */
  socket(family: Family): number;
  /**
   * Starts connecting; Ev.CONNECT follows on a later turn, even if the kernel connects at once. `host`: numeric IPv4 or
   * IPv6 address, or a Unix path, as a byte string. `fd`: from socket(), owned by the call even if it fails; without
   * it, a socket is created. Returns handle or -errno.
   */
  connect(family: Family, host: string, port: number, fd?: number): number;
  /** Starts (1) or stops (0) accepting on a listening socket. Handle from listenOpen. */
  listenStart(handle: number, on: number): void;
  /** Wraps a listening fd; does not start accepting. Returns a handle > 0 or -errno. */
  listenOpen(fd: number): number;
  /**
   * Watches a descriptor for readability without reading from it (Ev.READABLE), and makes it non-blocking. close()
   * forgets it without closing the fd. Returns a handle > 0 or -errno (-EPERM for regular files).
   */
  watchFd(fd: number): number;
  /** the descriptor of a handle, or -EBADF */
  fdOf(handle: number): number;
  /**
   * Forgets the handle, closes the descriptor and drops kept and unsent bytes. The caller must ignore records of this
   * handle that are still in the ring. Handle numbers are reused only after the next wait().
   */
  close(handle: number): void;
  /** As close(), and ends the connection even if another process has its descriptor too. */
  hangUp(handle: number): void;
  /**
   * Forgets the handle and returns its descriptor, still open (or -EBADF). Take kept and unsent bytes first: they are
   * dropped.
   */
  detach(handle: number): number;

  /** Starts receiving, if that is off. Kept bytes are delivered first, on the next turn, even if no more arrive. */
  recvStart(handle: number): void;
  /**
   * For a handle that is not receiving: 1 if its stream has ended or broken and has no bytes left to receive; else 0,
   * or -EBADF. For a plain connection this is the state found by the last wait(); for TLS the socket is checked now.
   */
  ended(handle: number): number;
  /** Stops receiving; nothing is delivered until recvStart. Costs no system call. */
  recvStop(handle: number): void;
  /**
   * recvStop() for a connection that a handover has described, and what the kernel is receiving for it ends with the next
   * wait(): recvStopAll() then has less to do. Returns 0, or -EBADF during a TLS handshake.
   */
  rest(handle: number): number;
  /** The handles of rest() that have bytes buffered or unsent, or TLS records in either direction since. */
  stirred(): number[];
  /** recvStop() on every stream except `except`, for the handover. Returns the handles that have unsent bytes. */
  recvStopAll(except: number): number[];
  /**
   * Limits the next receive that delivers bytes to `most` bytes (0 = no limit); then the limit is gone. It lets the
   * caller stop at the end of a packet. Plain connections only; kept bytes do not count.
   */
  recvLimit(handle: number, most: number): void;
  /**
   * Keeps the unprocessed tail of the bytes just delivered. It is delivered again in front of the next bytes that
   * arrive, or alone after recvStop and recvStart. Several calls append. If more than 1 MB is kept, the next delivery
   * is -EMSGSIZE; if memory is exhausted, -ENOMEM.
   */
  keep(handle: number, offset: number, length: number): void;
  /** keep(), then recvStop(). */
  park(handle: number, offset: number, length: number): void;
  /**
   * Moves all kept bytes into the arena, and starts receiving. Returns their offset (resumedLength tells their number), -1
   * if there are none, or -ENOBUFS if 2 MB were already taken in this turn: then they are delivered on the next turn.
   */
  resume(handle: number): number;
  /** Starts receiving from a connection that was just accepted. Returns the offset of what has arrived already, or -1. */
  recvFirst(handle: number): number;
  keptLength(handle: number): number;
  /** number of bytes that were received and not delivered yet, kept ones included, or -EBADF */
  buffered(handle: number): number;
  /**
   * Off (0): nothing is received for a stopped handle or beyond recvLimit(), so that a descriptor can be passed to a
   * process that knows nothing of bytes received here. On (1), the default: a backend may receive ahead.
   */
  receiveAhead(on: number): void;
  /** A copy of the kept bytes, which stay kept; null if memory is exhausted. */
  copyKept(handle: number): Uint8Array | null;
  /** Like keep(), from any Uint8Array: bytes that another process received for this handle. */
  keepBytes(handle: number, bytes: Uint8Array): number;

  /**
   * Queues bytes of the arena, without copying them; the next wait() sends them. Returns the number of unsent bytes:
   * those that the socket has not taken in earlier turns, and these behind them. If it is not 0, Ev.DRAIN follows.
   * Returns -errno on failure (-ENOBUFS: more than 256 MB queued, -EFAULT: outside the arena, -EPIPE: an earlier send has
   * failed). A failure to send is an Ev.DRAIN with -errno.
   */
  send(handle: number, offset: number, length: number): number;
  /** Like send(), from any Uint8Array (Buffer), which is copied or sent at once. */
  sendBytes(handle: number, bytes: Uint8Array, offset: number, length: number): number;
  /** Sends what is queued for the next wait(). Returns the number of bytes that the socket does not take, or -EBADF. */
  unsent(handle: number): number;
  /** Takes the queued bytes of a handle (handover); no Ev.DRAIN follows. With TLS they are already encrypted. */
  takeUnsent(handle: number): Uint8Array;

  /** Creates a TLS context. Throws an Error with PgBouncer's message. Returns an id > 0. */
  tlsCtxNew(role: TlsRole, options: TlsContextOptions): number;
  /** Frees a context; existing connections keep working. 0 and unknown ids are ignored. */
  tlsCtxFree(id: number): void;
  /** whether OpenSSL knows a cipher list (TLS 1.2 and older) or a curve */
  tlsKnown(what: 'ciphers' | 'curve', value: string): boolean;
  /** the suites of a cipher list whose connections another process cannot continue; [] for OpenSSL's own list */
  tlsSuitesThatStay(ciphers: string): string[];
  /**
   * Starts TLS on an open handle in the accepting role; Ev.TLS follows, whether the handle is receiving or not.
   * Handshake bytes that have already been received (at most 32 KB) are passed as a range of the arena. Bytes sent
   * earlier go out unencrypted; until the handshake is done send() returns -EIO. Returns 0, -EBADF (not a stream, or
   * TLS already), -EINVAL (no such context), -EMSGSIZE, -EFAULT or -ENOMEM.
   */
  tlsAccept(handle: number, context: number, offset: number, length: number): number;
  /**
   * Like tlsAccept(), in the connecting role. `host`: the name to announce (SNI) and to verify in the certificate, '' =
   * none (-EINVAL if the context verifies names).
   */
  tlsConnect(handle: number, context: number, host: string): number;
  /** why a handshake, or receiving on a TLS handle, failed; '' if it did not */
  tlsError(handle: number): string;
  /** null for a plain handle */
  tlsInfo(handle: number): TlsInfo | null;
  tlsPeerCertProvided(handle: number): boolean;
  /** null if there is no certificate */
  tlsPeerCertSubject(handle: number): string | null;
  tlsPeerCertContainsName(handle: number, name: string): boolean;
  /**
   * The hash of a certificate for the channel binding tls-server-end-point (RFC 5929), as a byte string. '' if there is
   * no certificate, its signature names no hash function (Ed25519), or the connection is a continued one.
   * @param own 1: the certificate of this end, 0: that of the peer
   */
  tlsCertHash(handle: number, own: number): string;
  /**
   * Why another process could not continue a TLS connection; null = it could. For a stopped stream (recvStopAll), or one
   * of which buffered() is 0.
   */
  tlsRefusal(handle: number): string | null;
  /** Likewise, if nothing that is received or sent can change it. */
  tlsLastingRefusal(handle: number): string | null;
  /**
   * What another process needs to continue a TLS connection, besides the socket and its kept and unsent bytes; null if
   * tlsRefusal() has a reason. It has the secrets of the connection: the caller wipes it.
   */
  tlsExport(handle: number): Uint8Array | null;
  /**
   * Continues a TLS connection on an open handle. It is frozen until tlsFreeze(handle, 0). Returns 0, -EBADF, -ENOMEM, or
   * -EINVAL if the bytes are not valid.
   */
  tlsContinue(handle: number, bytes: Uint8Array): number;
  /** 1: nothing is sent on a TLS connection, close_notify included, because another process may own it; 0: as before. */
  tlsFreeze(handle: number, on: number): void;
  /** Freezes every TLS connection but `except` that another process can continue. Returns the handles of the others. */
  tlsFreezeAll(except: number): number[];
  tlsThawAll(): void;
  /** Number of TLS records in both directions in this process; -1 for a plain handle or during a handshake. */
  tlsTraffic(handle: number): number;
  /** Sends bytes of takeUnsent() again, as they are. Returns as send(). */
  sendRecords(handle: number, bytes: Uint8Array): number;

  /**
   * Resolves a host name off the loop (getaddrinfo, SOCK_STREAM). Returns a request id > 0 or -errno; Ev.RESOLVED
   * follows. Every finished request must be freed with resolveResult or resolveCancel.
   */
  resolve(name: string): number;
  /** The addresses of a finished request (numeric hosts, port 0), in getaddrinfo's order; frees the request. */
  resolveResult(id: number): SockAddr[];
  /** Frees a request, finished or not; no Ev.RESOLVED follows unless it is already in the ring. */
  resolveCancel(id: number): void;

  /** Writes the SHA-256 of the bytes into the first 32 bytes of `digest`. Returns false if it is shorter. */
  sha256(bytes: Uint8Array, digest: Uint8Array): boolean;
  /** Likewise, HMAC-SHA-256 (RFC 2104) of a byte string. */
  hmacSha256(key: Uint8Array, text: string, digest: Uint8Array): boolean;

  /** Opens libpam and starts its thread, once; needs loopInit. Returns '', or why PAM is not available. */
  pamOpen(): string;
  /** Queues a login for PAM; Ev.AUTHENTICATED follows with this id. Returns 0, -EAGAIN (20 are waiting) or -ENOSYS. */
  pamSubmit(id: number, user: string, password: string, rhost: string): number;
  /** The log messages of a finished login; frees the request. */
  pamMessages(id: number): string[];

  /* POSIX calls that do not involve the loop; -errno on failure unless noted otherwise */
  /**
   * Blocking getaddrinfo with AI_PASSIVE for listen_addr; host null = any. Throws an Error with .message and .code =
   * the gai_strerror text, .errno = the EAI_ number.
   */
  getaddrinfoPassive(host: string | null, port: number): SockAddr[];
  /** socket, options, bind and listen. reuseport is 0 or 1. Returns fd, or throws an Error with .syscall and .errno. */
  listenTcp(addr: SockAddr, backlog: number, reuseport: number): number;
  listenUnix(path: string, backlog: number): number;
  /** Changes the backlog of a socket that listens already. Returns 0 or -errno. */
  listenBacklog(fd: number, backlog: number): number;
  /** Sets close-on-exec and non-blocking, which accepted connections have already. Throws like tuneTcp(). */
  setUpSocket(fd: number): void;
  /**
   * Sets the TCP options, like PgBouncer's tune_socket(). Keepalive times are in seconds, userTimeout in ms, bufferSize
   * in bytes (0 = leave alone); TCP_NODELAY is always set. Throws with .syscall (the step as PgBouncer logs it:
   * 'setsockopt/TCP_NODELAY'...) and .errno.
   */
  tuneTcp(
    fd: number,
    keepalive: number,
    keepidle: number,
    keepintvl: number,
    keepcnt: number,
    userTimeout: number,
    bufferSize: number,
  ): void;
  /** TCP_DEFER_ACCEPT on a listening socket. Returns 0 or -errno. */
  deferAccept(fd: number, on: number): number;
  /** Local address; throws with .syscall and .errno. For a Unix socket, host = path, '' if unnamed. */
  sockName(fd: number): SockAddr;
  /** The peer's address; otherwise like sockName(). */
  peerName(fd: number): SockAddr;
  /** SO_PEERCRED: [uid, gid, pid] or null */
  peerCred(fd: number): [number, number, number] | null;
  /** connects to a Unix socket to find out whether a process listens on it; never blocks */
  unixProbe(path: string): boolean;
  /** a pair of connected, blocking Unix sockets, close-on-exec; throws with .syscall and .errno */
  socketPair(): [number, number];
  closeFd(fd: number): void;
  /** The monotonic clock, uncached, in usec; called only by time.ts. */
  readClock(): number;
  /** The difference between the wall clock and readClock(), in usec; called only by time.ts. */
  wallOffset(): number;
  dup2(from: number, to: number): number;
  setsid(): number;
  /** [soft, hard] of RLIMIT_NOFILE; -1 = unlimited */
  rlimitNofile(): [number, number];
  /** Ends the process at once: no thread is waited for, and nothing that threads use is taken down. */
  exitNow(code: number): never;
  /** Whether the kernel may write core dumps of this process, and processes of its user may trace it. 0 or -errno. */
  setDumpable(on: number): number;
  /**
   * Gives the kernel what the C library holds unused, and drops the constants of Node's program that were needed once.
   * Takes some 0.1 ms, and 0.1 ms for each MB that is given back.
   */
  releaseMemory(): void;
  /** numbers of the CPUs that this thread may run on; empty if unknown */
  cpuAffinity(): number[];
  /** Restricts every thread of this process to these CPUs. Returns 0 or -errno. */
  setCpuAffinity(cpus: number[]): number;
  /** the C library's strerror() text */
  strerror(errno: number): string;
  /** the C library's gai_strerror() text */
  gaiStrerror(code: number): string;
  /**
   * Sets the name of the process, of at most 15 bytes, and its arguments as ps shows them.
   * @param args each ends with a NUL; ignored if they are longer than the original arguments
   */
  setProcessTitle(name: string, args: Uint8Array): void;
  /** uid and gid of a user name, or null */
  getpwnam(name: string): { uid: number; gid: number } | null;
  getpwuid(uid: number): string | null;
  /** gid of a group name or -1 */
  getgrnam(name: string): number;
  chown(path: string, uid: number, gid: number): number;
  /** An unknown facility opens the log with LOG_DAEMON, as in PgBouncer. */
  openlog(ident: string, facility: string): void;
  syslog(priority: number, text: string): void;
  closelog(): void;
  /** Blocks until fd is ready, also through signals. Returns 1, 0 after timeoutMs (-1 = no limit), or -errno. */
  pollFd(fd: number, forWrite: 0 | 1, timeoutMs: number): number;
  /** Bytes sent on a Unix socket that the peer has not read yet, including the kernel's overhead; or -errno. */
  unreadBytes(fd: number): number;
  /** Makes further sends of the peer fail; what it has already sent can still be received. */
  refuseMore(fd: number): void;
  /** Blocks the thread: only while no client is served, as in a handover. Signals do not shorten it. */
  sleepMs(ms: number): void;
  /** Sends one datagram to a Unix socket ('@' in front = abstract). Returns 0 or -errno. */
  sendDatagram(path: string, text: string): number;
  /** Sends bytes (at least one) with up to 250 descriptors as SCM_RIGHTS. Returns bytes sent or -errno. */
  sendFds(fd: number, bytes: Uint8Array, fds: number[]): number;
  /**
   * Receives bytes into the caller's memory, which is not empty, and any descriptors (close-on-exec). The addon keeps no
   * copy: the bytes may be secrets. result = byte count, 0 at end of file, or -errno; -EMFILE if there was no room for all
   * descriptors, which are closed then
   */
  recvFds(fd: number, into: Uint8Array): { result: number; fds: number[] };
}

/**
 * The addon's functions, for this environment (thread). A copy, because the addon's own object is a hash table to V8, and
 * every call would look its function up there.
 */
export const native: Native = { ...(require(findAddon()) as Native) };

/** All bytes received in this turn, read in place. */
export let arena: Buffer = Buffer.from(native.arena);
/** The ready records of this turn. */
export const ring: Int32Array = new Int32Array(native.ring, 0, (native.ring.byteLength - 32) / 4);
/** One element: readClock() at the end of the last wait(). */
export const waitClock: Float64Array = new Float64Array(native.ring, native.ring.byteLength - 32, 1);
/** One element: the number of bytes that the last resume() or recvFirst() has moved. */
export const resumedLength: Int32Array = new Int32Array(native.ring, native.ring.byteLength - 24, 1);
/**
 * The addresses of the connection that the last openAccepted() has opened, if it uses IPv4: the peer's host as a number
 * and its port, and the local ones. A port of 0 says that it does not.
 */
export const acceptedNames: Uint32Array = new Uint32Array(native.ring, native.ring.byteLength - 16, 4);

/** The parameters of native.loopInit(). */
export interface LoopSettings {
  backend: string;
  recvMax: number;
  threads: number;
  load: number;
  handshakeThreads: number;
}

/** As native.loopInit(), which tells the results and errors. With threads, the arena becomes longer. */
export function startLoop({ backend, recvMax, threads, load, handshakeThreads }: LoopSettings): string {
  const name = native.loopInit(backend, recvMax, threads, load, handshakeThreads);
  if (threads > 0) arena = Buffer.from(native.loopArena());
  return name;
}
