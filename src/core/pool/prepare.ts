/*
 * The pooler's records of protocol-level prepared statements: each unique query once, the clients' names for it, and
 * which servers have prepared it. No packets here; session/prepared.ts and pool/statements.ts use this module.
 */
import { createHash } from 'node:crypto';
import { type ListNode, StatList } from '../base/list';
import { detachBytes } from '../base/strutil';
import type { ChannelStatement } from './channels';
import { channelStatement } from './listen-text';

/** Prefix of a statement's name on servers; the number of the query follows. */
export const STATEMENT_NAME_PREFIX = 'PGBOUNCER_';
/** Longest query that is its own key, in bytes; the key of a longer query is its digest. */
const KEY_TEXT_MAX = 512;

/** A unique query with its parameter types: PgBouncer's PgPreparedStatement. */
export class PgPreparedStatement {
  readonly queryId: number;
  readonly key: string;
  /** see readingOf(): statements with the same text and another reading are different */
  readonly reading: string;
  /** the bytes of a query whose key is a digest; null = the key contains them */
  private readonly longBytes: Buffer | null;
  /** number of clients' names, servers and outstanding Closes that refer to it */
  useCount = 0;
  /** undefined = not known yet */
  private channel: ChannelStatement | null | undefined;

  constructor(queryId: number, key: string, reading: string, longBytes: Buffer | null) {
    this.queryId = queryId;
    this.key = key;
    this.reading = reading;
    this.longBytes = longBytes;
  }

  /** its name on servers */
  get name(): string {
    return STATEMENT_NAME_PREFIX + this.queryId;
  }

  /** LISTEN or UNLISTEN; null for every other query */
  get channelStatement(): ChannelStatement | null {
    if (this.channel !== undefined) return this.channel;
    this.channel = this.longBytes === null ? channelStatement(this.key.slice(0, this.key.indexOf('\0'))) : null;
    return this.channel;
  }

  /**
   * The query with its NUL, the number of parameter types and the types, as in Parse. For a short query they are made
   * from the key each time: a Buffer kept for each query would take several times its length.
   */
  get queryAndParameters(): Buffer {
    if (this.longBytes !== null) return this.longBytes;
    const { key, reading } = this;
    return Buffer.from(reading === '' ? key : key.slice(0, -reading.length), 'latin1');
  }
}

/** The global query cache, by key, and the number of the newest query. */
const preparedStatements = new Map<string, PgPreparedStatement>();
let lastQueryId = 0;
/** the same queries by number, while those of another process are restored: there may be many thousands */
let byNumber: Map<number, PgPreparedStatement> | null = null;

/**
 * A digest never equals the text of another query, because every such text contains a NUL. The text contains its own
 * length, and a digest has a fixed one: so neither is confused with what follows.
 */
function keyOf(queryAndParameters: Buffer, reading: string): string {
  const short = queryAndParameters.length <= KEY_TEXT_MAX;
  const own = short
    ? queryAndParameters.toString('latin1')
    : createHash('sha256').update(queryAndParameters).digest('base64');
  return own + reading;
}

function addStatement(queryId: number, key: string, queryAndParameters: Buffer, reading: string): PgPreparedStatement {
  const longBytes = queryAndParameters.length <= KEY_TEXT_MAX ? null : detachBytes(queryAndParameters);
  const ps = new PgPreparedStatement(queryId, key, reading, longBytes);
  preparedStatements.set(key, ps);
  byNumber?.set(queryId, ps);
  return ps;
}

/**
 * The entry of a query, created if missing. The caller must refer to it at once: an entry without references is
 * removed.
 * @param queryAndParameters a view; copied if it is kept
 * @param reading see readingOf()
 */
export function getPreparedStatement(queryAndParameters: Buffer, reading: string): PgPreparedStatement {
  const key = keyOf(queryAndParameters, reading);
  return preparedStatements.get(key) ?? addStatement(++lastQueryId, key, queryAndParameters, reading);
}

/** The entry of a query, or null. */
export function findPreparedStatement(queryAndParameters: Buffer, reading: string): PgPreparedStatement | null {
  return preparedStatements.get(keyOf(queryAndParameters, reading)) ?? null;
}

/** Removes one reference; the last one removes the query from the cache. */
export function releasePreparedStatement(ps: PgPreparedStatement): void {
  if (--ps.useCount === 0) preparedStatements.delete(ps.key);
}

/**
 * Adds a query with the number that another process gave it: the servers taken over know it by that number.
 * @returns null if the query or the number is already in use otherwise; the caller must then close the server
 */
export function restorePreparedStatement(
  queryId: number,
  queryAndParameters: Buffer,
  reading: string,
): PgPreparedStatement | null {
  const key = keyOf(queryAndParameters, reading);
  const known = preparedStatements.get(key);
  if (known !== undefined) return known.queryId === queryId ? known : null;
  byNumber ??= new Map([...preparedStatements.values()].map((ps) => [ps.queryId, ps]));
  const other = byNumber.get(queryId);
  // it may have been removed since
  if (other !== undefined && preparedStatements.get(other.key) === other) return null;
  const ps = addStatement(queryId, key, queryAndParameters, reading);
  if (queryId > lastQueryId) lastQueryId = queryId;
  return ps;
}

/** All queries of the other process have been restored. */
export function endRestoring(): void {
  byNumber = null;
}

/** Removes a query from the cache if it has no references. */
export function dropUnusedStatement(ps: PgPreparedStatement): void {
  if (ps.useCount === 0) preparedStatements.delete(ps.key);
}

/** Number of unique queries in use, for tests. */
export function queryCacheSize(): number {
  return preparedStatements.size;
}

/** Number of the newest query. */
export function newestQueryId(): number {
  return lastQueryId;
}

/** Continues the numbering of another process, so that no name is used twice on its servers. */
export function raiseQueryId(queryId: number): void {
  if (queryId > lastQueryId) lastQueryId = queryId;
}

/** A client's name for a query. */
export class ClientStatement {
  readonly name: string;
  readonly ps: PgPreparedStatement;
  /**
   * Its Parse or its Close failed, or was skipped after an error. Drivers then draw different conclusions: psycopg uses
   * the statement, others prepare it again. Both are allowed.
   */
  unsure = false;
  /** its Parse, Close or DEALLOCATE is outstanding */
  pending = false;
  /** the segment of the pipeline (RequestQueue.segment) of that request; -1 = it may fail on its own */
  segment = 0;
  /** will be removed unless its Close or DEALLOCATE fails: the name may be reused */
  closing = false;
  private released = false;

  constructor(name: string, ps: PgPreparedStatement) {
    this.name = name;
    this.ps = ps;
    ps.useCount++;
  }

  /** Its request has been sent. @param segment as the field */
  awaitAnswer(segment: number, closing: boolean): void {
    this.pending = true;
    this.segment = segment;
    this.closing = closing;
  }

  /** Its request was answered or skipped, and the statement exists. */
  settle(): void {
    this.pending = false;
    this.closing = false;
  }

  /** Removes the reference to the query, once. */
  release(): void {
    if (this.released) return;
    this.released = true;
    releasePreparedStatement(this.ps);
  }

  /** True if the statement is gone for good, so that a skipped Close cannot bring it back. */
  get gone(): boolean {
    return this.released;
  }
}

/** A query that a server has prepared, or has been asked to prepare. */
export class ServerStatement implements ListNode {
  prev: ListNode | null = null;
  next: ListNode | null = null;
  list: StatList<ListNode> | null = null;
  readonly ps: PgPreparedStatement;
  /** its Parse failed, or the server dropped it, while its Close was outstanding */
  gone = false;
  /** the server can no longer use it, or may have lost it: it is closed and prepared again before its next use */
  stale = false;
  /** how the server has read its constants: not as the query says if the client had changed its variables */
  reading: string;

  constructor(ps: PgPreparedStatement) {
    this.ps = ps;
    this.reading = ps.reading;
    ps.useCount++;
  }
}

/** The statements of a server, least recently used first. */
export class ServerStatements {
  private readonly byId = new Map<number, ServerStatement>();
  readonly lru = new StatList<ServerStatement>('server_prepared_statements');

  get count(): number {
    return this.lru.count;
  }

  find(ps: PgPreparedStatement): ServerStatement | undefined {
    return this.byId.get(ps.queryId);
  }

  findById(queryId: number): ServerStatement | undefined {
    return this.byId.get(queryId);
  }

  /** Adds a statement as the most recently used. The server must have no statement of the same query. */
  add(statement: ServerStatement): void {
    this.byId.set(statement.ps.queryId, statement);
    this.lru.append(statement);
  }

  remove(statement: ServerStatement): void {
    this.byId.delete(statement.ps.queryId);
    this.lru.remove(statement);
  }

  touch(statement: ServerStatement): void {
    if (statement.next === null) return;
    this.lru.remove(statement);
    this.lru.append(statement);
  }
}

/** The subject of a DEALLOCATE. */
export class Deallocation {
  /** null = ALL */
  readonly statement: ClientStatement | null;

  constructor(statement: ClientStatement | null) {
    this.statement = statement;
  }
}

/** A client's unnamed statement before a request that replaces it, as long as the server may skip that request. */
export interface EarlierUnnamed {
  /** the segment of the pipeline with that request (RequestQueue.segment) */
  readonly segment: number;
  /** number of the request: RequestQueue.total before it */
  readonly at: number;
  /* the fields of ClientSocket */
  readonly unnamedSeq: number;
  readonly unnamed: Buffer | null;
  readonly unnamedLen: number;
  readonly deallocating: Deallocation | null;
}

/** The kind of request that a note belongs to. */
export const enum NoteKind {
  /** Parse: the note has the statement that it registered */
  PARSE,
  /** Close: the note has the statement that it removed, and keeps it alive */
  CLOSE,
  /** SQL's DEALLOCATE: the note has the statement that it removed; without a client's statement, ALL */
  DEALLOCATE,
  /** SQL's UNLISTEN * */
  UNLISTEN,
  /** Parse of a name already in use: the note has the statement of that name */
  DUPLICATE,
}

/**
 * A note on an outstanding Parse, Close or DEALLOCATE: what to undo if the server skips the request because an earlier
 * request of the pipeline failed.
 */
export class RequestNote {
  readonly kind: NoteKind;
  server: ServerStatement | null;
  readonly client: ClientStatement | null;
  /** the segment of the pipeline with the request (RequestQueue.segment) */
  segment = 0;

  constructor(kind: NoteKind, server: ServerStatement | null, client: ClientStatement | null) {
    this.kind = kind;
    this.server = server;
    this.client = client;
  }
}
