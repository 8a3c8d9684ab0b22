/* How the live page writes numbers and times. Used by all its modules. */

/** A number with three digits and a letter: 1.24 k, 38.1 M. */
export function short(value) {
  if (!Number.isFinite(value)) return '–';
  const units = ['', ' k', ' M', ' G', ' T'];
  let at = 0;
  let rest = Math.abs(value);
  while (rest >= 999.5 && at < units.length - 1) {
    rest /= 1000;
    at++;
  }
  const sign = value < 0 ? '−' : '';
  return `${sign}${digits(rest, at === 0 && Number.isInteger(value))}${units[at]}`;
}

function digits(value, whole) {
  if (whole || value >= 99.95 || value === 0) return String(Math.round(value));
  if (value >= 9.995) return value.toFixed(1);
  return value.toFixed(value < 0.095 ? 2 : value < 0.995 ? 2 : 1);
}

/** A whole number with separators. */
export function whole(value) {
  return Math.round(value)
    .toString()
    .replace(/\B(?=(\d{3})+$)/g, '\u202f');
}

/** A time in usec: 850 µs, 1.24 ms, 3.1 s, 4 min. */
export function duration(usec) {
  if (!Number.isFinite(usec)) return '–';
  if (usec < 0.5) return '0';
  if (usec < 999.5) return `${Math.round(usec)} µs`;
  if (usec < 999_500) return `${digits(usec / 1000, false)} ms`;
  const seconds = usec / 1e6;
  if (seconds < 99.5) return `${seconds.toFixed(1)} s`;
  return age(seconds * 1000);
}

/** How long ago or how long, in ms: 34 s, 12 min, 3 h 20 min, 5 d 2 h. */
export function age(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 100) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** Bytes a second. */
export function bytes(value) {
  return `${short(value).replace(/(\d)$/, '$1 ')}B/s`;
}

function two(number) {
  return String(number).padStart(2, '0');
}

/** Time of day. @param ms since 1970 */
export function clock(ms) {
  const date = new Date(ms);
  return [date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join(':');
}

/** Time of day, with the date unless it is today's. @param now ms since 1970 */
export function moment(ms, now) {
  const date = new Date(ms);
  if (date.toDateString() === new Date(now).toDateString()) return clock(ms);
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${clock(ms)}`;
}

/** A share as percent. */
export function percent(part) {
  if (part === Number.POSITIVE_INFINITY) return '∞';
  return `${Math.round(part * 100)} %`;
}

/**
 * A name that a client or an operator has chosen, in a form that cannot disturb the text around it: control characters
 * and marks that change the direction of writing are shown as their codes.
 */
export function name(text) {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}]/gu, (char) => {
    return `\\u{${char.codePointAt(0).toString(16)}}`;
  });
}
