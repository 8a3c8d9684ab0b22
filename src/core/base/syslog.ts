/*
 * The log's output to syslog. The connection is opened by the first message and closed when logging is reset, so that a
 * changed ident or facility takes effect, as in PgBouncer. Only log.ts calls it.
 */

/** Priorities of syslog(3). */
export const enum SyslogPrio {
  CRIT = 2,
  ERR = 3,
  WARNING = 4,
  INFO = 6,
  DEBUG = 7,
}

const FACILITIES = [
  'auth',
  'authpriv',
  'daemon',
  'user',
  'local0',
  'local1',
  'local2',
  'local3',
  'local4',
  'local5',
  'local6',
  'local7',
];

type NativeModule = typeof import('./native');

let started = false;

/** The addon, loaded on first use, so that log lines can be written before it is loaded and without it. */
export function loadNative(): NativeModule['native'] | null {
  try {
    return (require('./native') as NativeModule).native;
  } catch {
    return null;
  }
}

/**
 * Sends one message, opening the connection first if necessary. Never throws: without syslog the message is lost.
 * @param facility name as in syslog_facility; an unknown name or null means 'daemon', as in PgBouncer
 */
export function syslogWrite(priority: SyslogPrio, text: string, ident: string | null, facility: string | null): void {
  const native = loadNative();
  if (native === null) return;
  try {
    if (!started) {
      const known = facility !== null && FACILITIES.includes(facility) ? facility : 'daemon';
      native.openlog(ident ?? 'pgbouncer', known);
      started = true;
    }
    native.syslog(priority, text);
  } catch {
    // a logging failure must not end the process
  }
}

/** Closes the connection; the next message reopens it. */
export function syslogReset(): void {
  if (!started) return;
  started = false;
  loadNative()?.closelog();
}
