/*
 * What the pooler knows about protocol-level prepared statements: every unique query once, the names that clients gave
 * to them, and which of them a server has prepared. Knows no packets; session/prepared.ts and pool/statements.ts use it.
 */
import { createHash } from 'node:crypto';
import { type ListNode, StatList } from '../base/list';

/** In front of the number of a query: the name of its statement on servers. */
export const STATEMENT_NAME_PREFIX = 'PGBOUNCER_';
/** Bytes of a query up to which its own text is its key; a longer one is known by its digest. */
const KEY_TEXT_MAX = 512;

/** A unique query with its parameter types: the original's PgPreparedStatement. */
export class PgPreparedStatement {
  readonly queryId: number;
  readonly key: string;
  /** the bytes of a query whose key is a digest; null = the key has them */
  private readonly longBytes: Buffer | null;
  /** clients' names, servers and Closes under way that refer to it */
  useCount = 0;

  constructor(queryId: number, key: string, longBytes: Buffer | null) {
    this.queryId = queryId;
    this.key = key;
    this.longBytes = longBytes;
  }

  /** what it is called on servers */
  get name(): string {
    return STATEMENT_NAME_PREFIX + this.queryId;
  }

  /**
   * As in Parse: the query with its NUL, the number of parameter types and the types. Made anew for a short query: a
   * Buffer kept for each would take several times the bytes of the query.
   */
  get queryAndParameters(): Buffer {
    return this.longBytes ?? Buffer.from(this.key, 'latin1');
  }
}

/** The global query cache, by key; and the number of the newest query. */
const preparedStatements = new Map<string, PgPreparedStatement>();
let lastQueryId = 0;

/** A digest is never some other query's text, because texts have a NUL in them. */
function keyOf(queryAndParameters: Buffer): string {
  if (queryAndParameters.length <= KEY_TEXT_MAX) return queryAndParameters.toString('latin1');
  return createHash('sha256').update(queryAndParameters).digest('base64');
}

/** A copy with memory of its own, so that it does not hold on to a slab of others. */
function copyBytes(bytes: Buffer): Buffer {
  const copy = Buffer.allocUnsafeSlow(bytes.length);
  bytes.copy(copy);
  return copy;
}

function addStatement(queryId: number, key: string, queryAndParameters: Buffer): PgPreparedStatement {
  const longBytes = queryAndParameters.length <= KEY_TEXT_MAX ? null : copyBytes(queryAndParameters);
  const ps = new PgPreparedStatement(queryId, key, longBytes);
  preparedStatements.set(key, ps);
  return ps;
}

/**
 * The entry of a query, made when there is none yet. It lives for as long as somebody uses it: the caller does so at once.
 * @param queryAndParameters a view; copied when it is kept
 */
export function getPreparedStatement(queryAndParameters: Buffer): PgPreparedStatement {
  const key = keyOf(queryAndParameters);
  return preparedStatements.get(key) ?? addStatement(++lastQueryId, key, queryAndParameters);
}

/** The entry of a query, if there is one. */
export function findPreparedStatement(queryAndParameters: Buffer): PgPreparedStatement | null {
  return preparedStatements.get(keyOf(queryAndParameters)) ?? null;
}

/** Counts one user less; the last one takes the query out of the cache. */
export function releasePreparedStatement(ps: PgPreparedStatement): void {
  if (--ps.useCount === 0) preparedStatements.delete(ps.key);
}

/**
 * A query that another process numbered: its servers know it under that number.
 * @returns null when the query or the number is already taken otherwise; the caller must not go on with that server
 */
export function restorePreparedStatement(queryId: number, queryAndParameters: Buffer): PgPreparedStatement | null {
  const key = keyOf(queryAndParameters);
  const known = preparedStatements.get(key);
  if (known !== undefined) return known.queryId === queryId ? known : null;
  for (const ps of preparedStatements.values()) if (ps.queryId === queryId) return null;
  const ps = addStatement(queryId, key, queryAndParameters);
  if (queryId > lastQueryId) lastQueryId = queryId;
  return ps;
}

/** Takes a query out of the cache that was looked up and then not used. */
export function dropUnusedStatement(ps: PgPreparedStatement): void {
  if (ps.useCount === 0) preparedStatements.delete(ps.key);
}

/** Number of unique queries that somebody uses. */
export function queryCacheSize(): number {
  return preparedStatements.size;
}

/** Number given to the newest query. */
export function newestQueryId(): number {
  return lastQueryId;
}

/** Continues another process's numbering, so that no name is given twice on its servers. */
export function raiseQueryId(queryId: number): void {
  if (queryId > lastQueryId) lastQueryId = queryId;
}

/** A client's name for a query. */
export class ClientStatement {
  readonly name: string;
  readonly ps: PgPreparedStatement;
  /**
   * Its Parse failed or was skipped after an error, or its Close was, and drivers draw different conclusions from that: one goes on to use
   * it (psycopg), another prepares it again. Both may.
   */
  unsure = false;
  /** its Parse, Close or DEALLOCATE is not answered yet */
  pending = false;
  /** the part of the pipeline (RequestQueue.segment) that this request is in; -1 = it may fail on its own */
  segment = 0;
  /** it is taken away unless its Close or DEALLOCATE fails: the name is as good as free */
  closing = false;
  private released = false;

  constructor(name: string, ps: PgPreparedStatement) {
    this.name = name;
    this.ps = ps;
    ps.useCount++;
  }

  /** Its request is on its way. @param segment as the field */
  awaitAnswer(segment: number, closing: boolean): void {
    this.pending = true;
    this.segment = segment;
    this.closing = closing;
  }

  /** Its request was answered or skipped, and the statement is there. */
  settle(): void {
    this.pending = false;
    this.closing = false;
  }

  /** The query is not this client's any more; once. */
  release(): void {
    if (this.released) return;
    this.released = true;
    releasePreparedStatement(this.ps);
  }

  /** True when it is gone for good, so that no skipped Close brings it back. */
  get gone(): boolean {
    return this.released;
  }
}

/** A query that a server has prepared, or is asked to prepare. */
export class ServerStatement implements ListNode {
  prev: ListNode | null = null;
  next: ListNode | null = null;
  list: StatList<ListNode> | null = null;
  readonly ps: PgPreparedStatement;
  /** its Parse failed, or the server forgot it, while its Close was under way */
  gone = false;
  /** the server cannot use it any more, or has lost it: it is closed and prepared again in front of its next use */
  stale = false;

  constructor(ps: PgPreparedStatement) {
    this.ps = ps;
    ps.useCount++;
  }
}

/** The statements of one server, the least recently used first. */
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

  /** Adds it as the most recently used. There must be none of the same query. */
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

/** What DEALLOCATE takes away. */
export class Deallocation {
  /** null = ALL */
  readonly statement: ClientStatement | null;

  constructor(statement: ClientStatement | null) {
    this.statement = statement;
  }
}

/** What a request with a note does. */
export const enum NoteKind {
  /** Parse: what it registered */
  PARSE,
  /** Close: what it takes away, kept alive by the note */
  CLOSE,
  /** SQL's DEALLOCATE: what it takes away; without a client's statement, ALL */
  DEALLOCATE,
  /** Parse of a name that the client has: the statement of that name */
  DUPLICATE,
}

/**
 * What hangs on an outstanding Parse, Close or DEALLOCATE: what has to be undone when the server skips it, because something
 * in front of it in the pipeline failed.
 */
export class RequestNote {
  readonly kind: NoteKind;
  server: ServerStatement | null;
  readonly client: ClientStatement | null;
  /** the part of the pipeline that the request is in (RequestQueue.segment) */
  segment = 0;

  constructor(kind: NoteKind, server: ServerStatement | null, client: ClientStatement | null) {
    this.kind = kind;
    this.server = server;
    this.client = client;
  }
}
