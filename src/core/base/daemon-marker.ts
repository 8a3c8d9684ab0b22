/**
 * The environment variable that marks the fresh process as the daemon; its value is the descriptor that leads to the
 * launcher.
 */
export const DAEMON_MARKER = 'TSBOUNCER_DAEMON_FD';
