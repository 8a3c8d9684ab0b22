/*
 * Finds LISTEN and UNLISTEN in the text of a query, which may have several statements. Only the tags of the server tell
 * whether they were executed. So a text that PostgreSQL would reject may have any result here.
 */

import { asciiLower } from '../base/strutil';
import { SQL_NAME_MAX } from '../wire/limits';
import type { ChannelStatement } from './channels';

const ANY = /listen/i;
/* each is tried at one position */
const SPACE = /(?:[ \t\n\v\f\r]+|--[^\n\r]*)+/y;
const WORD = /[a-z_\x80-\xff][a-z0-9_$\x80-\xff]*/iy;
const QUOTED = /"([^"]*(?:""[^"]*)*)"/y;
const STRING = /'[^']*'/y;
const ESCAPE_STRING = /'[^'\\]*(?:(?:\\.|'')[^'\\]*)*'/sy;
const DOLLAR = /\$(?:[a-z_\x80-\xff][a-z0-9_\x80-\xff]*)?\$/iy;

/** @returns null if the result depends on the encoding of the server, which does not cut a character */
function truncate(name: string): string | null {
  if (name.length <= SQL_NAME_MAX) return name;
  return /[\x80-\xff]/.test(name) ? null : name.slice(0, SQL_NAME_MAX);
}

class Scanner {
  private at = 0;

  /** @param backslash ordinary strings have backslash escapes (standard_conforming_strings = off) */
  constructor(
    private readonly text: string,
    private readonly backslash: boolean,
  ) {}

  /** Skips what the pattern matches here. @returns the text, '' = no match */
  private take(pattern: RegExp): string {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text)?.[0] ?? '';
    this.at += found.length;
    return found;
  }

  private skipSpace(): void {
    do this.take(SPACE);
    while (this.text.startsWith('/*', this.at) && this.skipComment());
  }

  /** Comments may be nested. @returns false at the end of the text */
  private skipComment(): boolean {
    let depth = 0;
    do {
      const open = this.text.indexOf('/*', this.at);
      const close = this.text.indexOf('*/', this.at);
      if (close < 0) {
        this.at = this.text.length;
        return false;
      }
      const opens = open >= 0 && open < close;
      depth += opens ? 1 : -1;
      this.at = (opens ? open : close) + 2;
    } while (depth > 0);
    return true;
  }

  /** Skips the rest of a statement, and the semicolon. @returns false at the end of the text */
  private skipStatement(): boolean {
    while (this.at < this.text.length) {
      this.skipSpace();
      const word = this.take(WORD);
      if (word !== '') {
        if ((word === 'e' || word === 'E') && this.text[this.at] === "'") this.skipString(ESCAPE_STRING);
        continue;
      }
      switch (this.text[this.at]) {
        case ';':
          this.at++;
          return true;
        case "'":
          this.skipString(this.backslash ? ESCAPE_STRING : STRING);
          break;
        case '"':
          this.skipString(QUOTED);
          break;
        case '$':
          this.skipDollar();
          break;
        default:
          this.at++;
      }
    }
    return false;
  }

  /** Skips a string; to the end of the text if it has no end. */
  private skipString(pattern: RegExp): void {
    if (this.take(pattern) === '') this.at = this.text.length;
  }

  private skipDollar(): void {
    const quote = this.take(DOLLAR);
    // a parameter, as in $1
    if (quote === '') this.at++;
    else {
      const end = this.text.indexOf(quote, this.at);
      this.at = end < 0 ? this.text.length : end + quote.length;
    }
  }

  /** A name. @returns null if this is none, or cannot be read: U&"...", or a long name that is not ASCII */
  private name(): string | null {
    this.skipSpace();
    QUOTED.lastIndex = this.at;
    const quoted = QUOTED.exec(this.text)?.[1];
    if (quoted !== undefined) return truncate(quoted.replaceAll('""', '"'));
    const word = this.take(WORD);
    // like PostgreSQL with multi-byte encodings
    return word === '' || this.text.startsWith('&"', this.at) ? null : truncate(asciiLower(word));
  }

  /** The statements up to the first whose channel cannot be read. */
  statements(): ChannelStatement[] {
    const found: ChannelStatement[] = [];
    do {
      this.skipSpace();
      const word = asciiLower(this.take(WORD));
      if (word !== 'listen' && word !== 'unlisten') continue;
      this.skipSpace();
      const all = word === 'unlisten' && this.text[this.at] === '*';
      const channel = all ? null : this.name();
      if (channel === null && !all) break;
      found.push({ listen: word === 'listen', channel });
    } while (this.skipStatement());
    return found;
  }
}

/**
 * The LISTEN and UNLISTEN of a text, in order.
 * @param text bytes
 * @param backslash the session has standard_conforming_strings = off
 */
export function channelStatements(text: string, backslash = false): ChannelStatement[] {
  return ANY.test(text) ? new Scanner(text, backslash).statements() : [];
}

/** The same for a text that can only be a single statement; null = it is neither. */
export function channelStatement(text: string): ChannelStatement | null {
  return channelStatements(text)[0] ?? null;
}
