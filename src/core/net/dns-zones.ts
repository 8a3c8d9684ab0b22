/*
 * The DNS zones of the host names that were looked up: the part after the first dot. With dns_zone_check_period, the
 * serial numbers of all zones are queried once per period, one zone after another. When a serial number has grown, the
 * zone's names are looked up again, and connections to addresses that disappeared are closed when idle. After
 * PgBouncer's zone code in dnslookup.c.
 */

import { logDebug, logInfo, logNoise, logWarning } from '../base/log';
import { asciiLower, compareNames, equalNoCase } from '../base/strutil';
import { newTimer, timerStart, timerStop } from '../base/timer';
import { cf } from '../config/settings';
import { askNameThread } from './name-thread';

interface Zone {
  name: string;
  /** 0 = not known yet */
  serial: number;
  /** host names, each with the function that looks it up again */
  hosts: Map<string, () => void>;
}

/** In the order in which they are queried. */
const zones: Zone[] = [];

/** period of the armed timer in usec, 0 = not armed */
let armedPeriod = 0;
/** Number of the current check of all zones; 0 = none. Answers to older checks are ignored. */
let round = 0;
let lastRound = 0;

const timer = newTimer(() => {
  armedPeriod = 0;
  round = ++lastRound;
  askZone(0);
});

/**
 * Called when a host name is looked up for the first time.
 * @param lookUpAgain called when the serial number of its zone has grown
 */
export function zoneRegister(host: string, lookUpAgain: () => void): void {
  logDebug(`zone_register(${host})`);
  const dot = host.indexOf('.');
  if (dot < 0 || dot === host.length - 1) return;
  const name = host.slice(dot + 1);
  logDebug(`zone_register(${host}): name=${name}`);
  const zone = zones.find((each) => equalNoCase(each.name, name));
  if (zone === undefined) zones.push({ name, serial: 0, hosts: new Map([[host, lookUpAgain]]) });
  else zone.hosts.set(host, lookUpAgain);
}

function askZone(at: number): void {
  const zone = zones[at];
  if (zone === undefined) {
    round = 0;
    zoneCacheMaint();
    return;
  }
  const asked = round;
  logDebug(`dns: ares query SOA(${zone.name})`);
  askNameThread('zone', zone.name, ({ error, serial }) => {
    logNoise(`ares SOA result: ${error || 'Successful completion'}`);
    if (error === 'Misformatted DNS reply') logWarning(`ares_parse_soa: ${error}`);
    if (asked !== round) return;
    if (error === '') gotSerial(zone, serial);
    else logDebug(`failure to get zone '${zone.name}' serial`);
    askZone(at + 1);
  });
}

function gotSerial(zone: Zone, serial: number): void {
  // serial numbers wrap around: RFC 1982. The first one has nothing to be compared with
  if (zone.serial === 0 ? serial === 0 : ((serial - zone.serial) | 0) <= 0) {
    logDebug(`zone '${zone.name}' unchanged: serial=${serial}`);
    return;
  }
  logInfo(`zone '${zone.name}' serial changed: old=${zone.serial} new=${serial}`);
  zone.serial = serial;
  for (const lookUpAgain of zone.hosts.values()) lookUpAgain();
}

/** Called by the janitor: arms the timer for the next check, or stops checking if the period was set to 0. */
export function zoneCacheMaint(): void {
  const period = cf.dnsZoneCheckPeriod;
  if (period <= 0) {
    timerStop(timer);
    armedPeriod = 0;
    round = 0;
  } else if (round === 0 && zones.length > 0 && armedPeriod !== period) {
    armedPeriod = period;
    timerStart(timer, period, 0);
  }
}

/** Calls `each` for every zone, sorted by name, for SHOW DNS_ZONES. */
export function dnsForEachZone(each: (zone: string, serial: number, count: number) => void): void {
  const sorted = zones.map((zone) => ({ zone, key: asciiLower(zone.name) })).sort((a, b) => compareNames(a.key, b.key));
  for (const { zone } of sorted) each(zone.name, zone.serial, zone.hosts.size);
}

/** @returns the number of zones, and the number of queries in progress (0 or 1) */
export function zoneCounts(): { zones: number; asking: number } {
  return { zones: zones.length, asking: round === 0 ? 0 : 1 };
}
