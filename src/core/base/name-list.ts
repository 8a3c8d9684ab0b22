/*
 * Lists of quoted or unquoted SQL names, as search_path contains them. PostgreSQL reads them by its
 * SplitIdentifierString().
 */

import { asciiLower, pgQuoteLiteral } from './strutil';

/** One name and its separator from the next name. An unquoted name ends at a comma or white space. */
const NAME = /[ \t\n\r\f\v]*(?:"((?:[^"]|"")*)"|([^", \t\n\r\f\v][^, \t\n\r\f\v]*))[ \t\n\r\f\v]*(,|$)/y;

/**
 * The list with each name as a string literal, for SET: '"$user", Public' becomes "'$user','public'". An empty list
 * becomes "''".
 * @returns null if PostgreSQL would refuse the list
 */
export function quoteNameList(list: string): string | null {
  if (/^[ \t\n\r\f\v]*$/.test(list)) return "''";
  const literals: string[] = [];
  NAME.lastIndex = 0;
  for (;;) {
    const match = NAME.exec(list);
    if (match === null) return null;
    const quoted = match[1];
    const name = quoted === undefined ? asciiLower(match[2] as string) : quoted.replace(/""/g, '"');
    literals.push(pgQuoteLiteral(name));
    if (match[3] === '') return literals.join(',');
  }
}
