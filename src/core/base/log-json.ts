/*
 * Lines of the log as JSON: one object a line, in UTF-8. The text form is in log.ts.
 */

import { utf8Of } from './strutil';

/** What is known about the socket of a line. Texts are byte strings. */
export type LogFields = Readonly<Record<string, string | number>>;

/**
 * @param time RFC 3339
 * @param level the tag of the text form
 * @param message without the prefix that names the socket, a byte string
 * @param fields null = the line is about no socket
 * @returns the line with its end, as UTF-8
 */
export function jsonLine(time: string, pid: number, level: string, message: string, fields: LogFields | null): Buffer {
  const line: Record<string, string | number> = { time, pid, level };
  for (const [name, value] of Object.entries(fields ?? {}))
    line[name] = typeof value === 'string' ? utf8Of(value) : value;
  line.message = utf8Of(message.replace(/\n+$/, ''));
  return Buffer.from(`${JSON.stringify(line)}\n`);
}
