/*
 * The settings of a session on a simulated server: those that it reports to its client, and a setting that the pooler does
 * not track.
 */
import { cstring, packet } from './wire';

const PARAMETERS: [string, string][] = [
  ['server_version', '16.3'],
  ['client_encoding', 'UTF8'],
  ['DateStyle', 'ISO, MDY'],
  ['TimeZone', 'UTC'],
  ['standard_conforming_strings', 'on'],
  ['application_name', ''],
  ['integer_datetimes', 'on'],
  ['server_encoding', 'UTF8'],
];
const REPORTED = new Set(PARAMETERS.map(([name]) => name));

/** Reports the value of a parameter. */
export const report = (name: string, value: string): string => packet('S', cstring(name) + cstring(value));

export class SessionVars {
  private readonly values = new Map(PARAMETERS);
  /** the client whose SET the pooler does not track; '' = none */
  setter = '';

  value(name: string): string {
    return this.values.get(name) ?? '';
  }

  /** A parameter of the startup packet. */
  begin(name: string, value: string): void {
    if (REPORTED.has(name)) this.values.set(name, value);
  }

  /** @returns the reports of all values */
  all(): string {
    return [...this.values].map(([name, value]) => report(name, value)).join('');
  }

  /** Executes a SET. @returns the report of the new value, or nothing */
  set(sql: string): string {
    const match = /^SET (\w+)\s*=\s*'?([^']*)'?/i.exec(sql);
    if (match === null) return '';
    const [, word, value] = match as unknown as [string, string, string];
    if (word === 'other') this.setter = value;
    const name = [...REPORTED].find((known) => known.toLowerCase() === word.toLowerCase());
    if (name === undefined) return '';
    this.values.set(name, value);
    return report(name, value);
  }

  /** DISCARD ALL and RESET ALL. @returns the reports of the variables that change */
  reset(): string {
    this.setter = '';
    const changed = PARAMETERS.filter(([name, value]) => this.values.get(name) !== value);
    for (const [name, value] of changed) this.values.set(name, value);
    return changed.map(([name, value]) => report(name, value)).join('');
  }
}
