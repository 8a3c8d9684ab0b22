/*
 * auth_ident_file: named maps from system users (or certificate names) to PostgreSQL users, one `map-name system-user
 * database-user` per line. HBA rules refer to them with map=.
 */
import { readFileSync } from 'node:fs';
import { logError, logWarning, strerror } from '../base/log';
import { atName, eat, eatWord, nextToken, Tok, Tokens } from './tokens';

/** One line of a map. */
interface IdentMapping {
  systemUser: string;
  /** null = all */
  postgresUser: string | null;
}

/** All lines of one map, in the file's order. */
export interface IdentMap {
  name: string;
  mappings: IdentMapping[];
}

/** Maps by name. */
export type IdentMaps = Map<string, IdentMap>;

/** The lines of a file as byte strings; a line's number is its index + 1. Throws as fs does. */
export function readLines(path: string): string[] {
  return readFileSync(Buffer.from(path, 'latin1')).toString('latin1').split('\n');
}

function parseIdentLine(maps: IdentMaps, line: string, linenr: number): boolean {
  const tokens = new Tokens(line);
  if (tokens.kind === Tok.EOL) return true;
  if (tokens.kind !== Tok.IDENT) return false;
  const mapName = tokens.text;
  nextToken(tokens);
  if (!atName(tokens)) return false;
  const systemUser = tokens.text;
  nextToken(tokens);
  let postgresUser: string | null = null;
  if (!eatWord(tokens, 'all')) {
    if (!atName(tokens)) return false;
    postgresUser = tokens.text;
  }
  // after `all` this skips one word too many, as PgBouncer does
  nextToken(tokens);
  if (!eat(tokens, Tok.EOL)) {
    logWarning(`ident line ${linenr}: unsupported parameters`);
    return false;
  }
  const mapping: IdentMapping = { systemUser, postgresUser };
  const map = maps.get(mapName);
  if (map === undefined) maps.set(mapName, { name: mapName, mappings: [mapping] });
  else map.mappings.push(mapping);
  return true;
}

/**
 * The maps of a file. Lines that cannot be parsed are logged and skipped, as in PgBouncer.
 * @param lines the file's lines
 */
export function parseIdent(lines: string[]): IdentMaps {
  const maps: IdentMaps = new Map();
  for (let i = 0; i < lines.length; i++) {
    if (!parseIdentLine(maps, lines[i] as string, i + 1)) logWarning(`could not parse ident config line ${i + 1}`);
  }
  return maps;
}

/** Reads auth_ident_file. @returns null if it cannot be opened, after logging why */
export function loadIdent(path: string): IdentMaps | null {
  try {
    return parseIdent(readLines(path));
  } catch (err) {
    logError(`could not open ident config file ${path}: ${strerror(err)}`);
    return null;
  }
}
