/*
 * What the whole process is doing: running, pausing, shutting down. Read everywhere, set by the console, the signals,
 * the janitor and the handover.
 */

declare global {
  /**
   * 0 = running, 1 = waiting for servers or clients to go, 2 = leave the main loop now. A true global, so that
   * `while (cfShutdown < 2) mainLoopOnce();` is the whole program; every environment (thread) has its own.
   */
  var cfShutdown: number;
}
globalThis.cfShutdown = 0;

/** The original's cf_pause_mode. */
export const enum PauseMode {
  NONE = 0,
  /** wait for clients to finish their work, close servers */
  PAUSE = 1,
  /** wait for buffers to be empty, stop reading */
  SUSPEND = 2,
}

/** What cfShutdown = 1 waits for. */
export const enum ShutdownMode {
  NONE = 0,
  /** new connections and waiting clients are refused; ends when no server connection is left */
  WAIT_FOR_SERVERS = 1,
  /** not listening any more, clients are served until they leave */
  WAIT_FOR_CLIENTS = 2,
  IMMEDIATE = 3,
}

export const runState = {
  pauseMode: PauseMode.NONE as PauseMode,
  shutdownMode: ShutdownMode.NONE as ShutdownMode,
  /** usec when SUSPEND began */
  suspendStart: 0,
  /** 1 while this process is taking over from another one (-R) */
  reboot: 0,
  daemon: false,
  /** set by whoever makes work that the next wait must not sleep on */
  breakLoop: false,
};

/** Begins or advances the shutdown; the flag and its mode always change together. */
export function setShutdown(mode: ShutdownMode): void {
  runState.shutdownMode = mode;
  globalThis.cfShutdown = mode === ShutdownMode.NONE ? 0 : mode === ShutdownMode.IMMEDIATE ? 2 : 1;
}
