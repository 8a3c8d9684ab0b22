/*
 * Local time as PgBouncer prints it in log lines and console columns: ISO-like digits, and the zone's abbreviation as
 * the C library names it ("CET", not "GMT+1"). ICU does not have these names, so they are read from the zone file.
 */
import { readFileSync } from 'node:fs';
import type { WallTime } from './time';

/** Where the C library looks for zone files; TZDIR overrides it. */
const ZONE_DIR = '/usr/share/zoneinfo';
const ZONE_FILE_HEADER_LEN = 44;

/** minutes east of UTC -> abbreviation; null until the zone file has been read */
let zoneNames: Map<number, string> | null = null;

let cachedSecond = -1;
let cachedText = '';
let cachedZone = '';

/** POSIX TZ offset ("-1", "5:30", "+03:00") to minutes east of UTC. */
function posixOffset(text: string): number {
  const match = /^([+-]?)(\d+)(?::(\d+))?/.exec(text);
  if (match === null) return 0;
  const minutes = Number(match[2]) * 60 + Number(match[3] ?? 0);
  return match[1] === '-' ? minutes : -minutes;
}

/** Adds the names of a POSIX TZ rule such as "CET-1CEST,M3.5.0,M10.5.0/3". Returns whether the text is such a rule. */
function addRule(rule: string, names: Map<number, string>): boolean {
  const match = /^(<[^>]+>|[A-Za-z]{3,})([+-]?[\d:]+)(?:(<[^>]+>|[A-Za-z]{3,})([+-]?[\d:]+)?)?/.exec(rule);
  if (match === null) return false;
  const bare = (name: string): string => name.replace(/[<>]/g, '');
  const standard = posixOffset(match[2] as string);
  names.set(standard, bare(match[1] as string));
  if (match[3] !== undefined) {
    names.set(match[4] === undefined ? standard + 60 : posixOffset(match[4]), bare(match[3]));
  }
  return true;
}

/** Reads the abbreviations of a TZif file (RFC 8536): those of all its types, then the footer's rule, which wins. */
function addZoneFile(file: Buffer, names: Map<number, string>): void {
  if (file.toString('latin1', 0, 4) !== 'TZif') return;
  let header = 0;
  let timeSize = 4;
  const counts = (): number[] => [20, 24, 28, 32, 36, 40].map((at) => file.readUInt32BE(header + at));
  let [isUt, isStd, leap, times, types, chars] = counts() as [number, number, number, number, number, number];
  if ((file[4] as number) >= 0x32) {
    // from version 2 on, a second block with 64-bit times follows
    header += ZONE_FILE_HEADER_LEN + times * 5 + types * 6 + chars + leap * 8 + isStd + isUt;
    [isUt, isStd, leap, times, types, chars] = counts() as [number, number, number, number, number, number];
    timeSize = 8;
  }
  const index = header + ZONE_FILE_HEADER_LEN + times * timeSize;
  const typeAt = index + times;
  const charAt = typeAt + types * 6;
  const name = (type: number): string => {
    const start = charAt + (file[typeAt + type * 6 + 5] as number);
    return file.toString('latin1', start, file.indexOf(0, start));
  };
  if (times === 0 && types > 0) names.set(file.readInt32BE(typeAt) / 60, name(0));
  for (let i = 0; i < times; i++) {
    const type = file[index + i] as number;
    names.set(Math.trunc(file.readInt32BE(typeAt + type * 6) / 60), name(type));
  }
  if (timeSize === 8) {
    const footer = charAt + chars + leap * 12 + isStd + isUt;
    addRule(file.toString('latin1', footer).replace(/\n/g, ''), names);
  }
}

function loadZoneNames(): Map<number, string> {
  const names = new Map<number, string>();
  const tz = process.env.TZ?.replace(/^:/, '');
  if (tz === '') return names;
  try {
    let path = '/etc/localtime';
    if (tz !== undefined) path = tz.startsWith('/') ? tz : `${process.env.TZDIR ?? ZONE_DIR}/${tz}`;
    addZoneFile(readFileSync(path), names);
  } catch {
    // a missing or damaged file: TZ itself may be a rule; otherwise the offset is printed
    if (tz !== undefined) addRule(tz, names);
  }
  return names;
}

function two(n: number): string {
  return n < 10 ? `0${n}` : `${n}`;
}

/** The abbreviation of the local zone at `date`. */
function zoneName(date: Date): string {
  zoneNames ??= loadZoneNames();
  const east = -date.getTimezoneOffset();
  const name = zoneNames.get(east);
  if (name !== undefined) return name;
  if (east === 0) return 'UTC';
  const abs = Math.abs(east);
  return `${east < 0 ? '-' : '+'}${two(Math.floor(abs / 60))}${abs % 60 === 0 ? '' : two(abs % 60)}`;
}

/** Fills the cache for a second since the epoch; the log lines of a busy second share it. */
function fillSecond(second: number): void {
  if (second === cachedSecond) return;
  const date = new Date(second * 1000);
  const year = `${date.getFullYear()}`.padStart(4, '0');
  const day = `${year}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  cachedText = `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  cachedZone = zoneName(date);
  cachedSecond = second;
}

/** usec since 1970; 0 = now, as in PgBouncer's functions */
function usecOf(time: WallTime | 0): number {
  const usec = time as unknown as number;
  return usec === 0 ? Date.now() * 1000 : usec;
}

/** `2026-11-22 09:30:01.123 UTC`: PgBouncer's format_time_ms(). */
export function formatTimeMs(time: WallTime | 0): string {
  const ms = Math.floor(usecOf(time) / 1000);
  const second = Math.floor(ms / 1000);
  fillSecond(second);
  return `${cachedText}.${`${ms - second * 1000}`.padStart(3, '0')} ${cachedZone}`;
}

/** Now as RFC 3339 writes it, in UTC: `2026-11-22T09:30:01.123Z`. */
export function isoTimeMs(): string {
  return new Date(usecOf(0) / 1000).toISOString();
}

/** `2026-11-22 09:30:01 UTC`: PgBouncer's format_time_s(). */
export function formatTimeS(time: WallTime | 0): string {
  fillSecond(Math.floor(usecOf(time) / 1_000_000));
  return `${cachedText} ${cachedZone}`;
}
