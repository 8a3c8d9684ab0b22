/*
 * The record of a client.
 */

import { countForDatabase, countForUser } from '../../core/pool/admission';
import { type ClientSocket, PgDatabase, type PgPool, SocketState } from '../../core/pool/bouncer';
import { adoptCancelKey } from '../../core/pool/cancel-keys';
import { findDatabase } from '../../core/pool/database';
import { LoginPhase } from '../../core/pool/phases';
import { Deallocation } from '../../core/pool/prepare';
import { keepOwners } from '../../core/pool/provisional';
import { clientPreparedEntries, restoreClientPrepared } from '../../core/pool/statements';
import { VarCache } from '../../core/pool/varcache';
import { restoreUnnamed } from '../../core/session/unnamed';
import { bytesText, ownBytesOf } from './bytes';
import { type ConsoleRecord, consoleOf, consoleRecord } from './console';
import type { Frame } from './frame';
import { type ClientListeningRecord, clientListeningRecord, readClientListening } from './listening';
import { addLoginFields, type LoginFields, readLoginFields } from './login';
import { type Described, readLoginUser, readSocket, type SocketRecord, socketRecord } from './socket';
import { hasFlag } from './socket-fields';
import { type ClientStatementTuple, clientTuple, readClientTuple, type SeeQuery } from './statement';

/** Fields are left out where they do not apply. */
export interface ClientRecord extends SocketRecord, LoginFields {
  /** cancel request: the server whose query it cancels */
  canceled?: number;
  db?: string;
  /** the database does not exist: mock authentication */
  fake?: boolean;
  startupOptions?: string;
  clientStatements?: ClientStatementTuple[];
  /* from 0.2.0 on */
  /** the body of its Parse of the unnamed statement, raw bytes */
  unnamed?: string;
  /** the statement that its unnamed DEALLOCATE frees, by name; null = ALL */
  deallocating?: string | null;
  /** the values that it gets again by RESET */
  startupVars?: readonly (string | null)[];
  /** console client that uses the extended protocol, which version 0.1.0 does not support */
  console?: ConsoleRecord;
  /* from format 3 on */
  /** what it listens on by the listening connection of its pool */
  listening?: ClientListeningRecord;
}

/** @param seen called for each query that the client has prepared */
export function clientRecord(client: ClientSocket, described: Described, seen: SeeQuery): ClientRecord {
  const record: ClientRecord = socketRecord(client, described);
  const { console, canceledServer, db, deallocating, login, partial } = client;
  if (partial !== null) record.collected = partial.length;
  if (console !== null) record.console = consoleRecord(console);
  if (canceledServer !== null) record.canceled = canceledServer.id;
  if (db !== null) {
    record.db = db.name;
    if (db.fake) record.fake = true;
  }
  if (client.startupOptions !== null) record.startupOptions = client.startupOptions;
  if (client.unnamedSeq !== 0 && client.unnamed !== null && client.unnamedLen > 0) {
    record.unnamed = bytesText(client.unnamed.subarray(0, client.unnamedLen));
  }
  if (client.startupVars !== null) record.startupVars = client.startupVars;
  if (deallocating !== null) record.deallocating = deallocating.statement?.name ?? null;
  if (client.listening !== null) record.listening = clientListeningRecord(client, client.listening);
  if (login !== null) addLoginFields(record, client, login);
  if (client.statements === null) return record;
  const entries = clientPreparedEntries(client);
  entries.forEach(seen);
  record.clientStatements = entries.map(clientTuple);
  return record;
}

/**
 * Restores a client, except for its list, its bytes and its links.
 * @param pool the pool of the record
 */
export function readClient(
  record: ClientRecord,
  client: ClientSocket,
  state: SocketState,
  pool: PgPool | null,
  frame: Frame,
): void {
  readSocket(record, client, frame);
  if (record.console !== undefined) client.console = consoleOf(record.console, client.console);
  client.startupOptions = record.startupOptions ?? null;
  if (client.login !== null) readLoginFields(record, client, client.login);
  const key = ownBytesOf(record.cancelKey);
  if (client.login === null) adoptCancelKey(client, key);
  else client.cancelKey = key;
  if (record.db !== undefined) client.db = databaseOf(record.db, record.fake === true);
  client.loginUser = readLoginUser(record, pool?.user ?? null, client.db, frame);
  countClient(client, record, frame);
  // Since 0.2 a login has a pool only while its auth_query runs.
  const hasPool = state !== SocketState.CL_LOGIN || client.login?.phase === LoginPhase.AUTH_QUERY_RESULT;
  client.pool = hasPool ? pool : null;
  if (state !== SocketState.CL_LOGIN && state !== SocketState.CL_WAITING_LOGIN) keepOwners(client);
  if (record.clientStatements !== undefined) {
    const entries = record.clientStatements.map((tuple) => readClientTuple(tuple, frame));
    restoreClientPrepared(client, entries);
  }
  if (record.startupVars !== undefined) {
    const values = new VarCache();
    frame.varsOf(record.startupVars, values);
    client.startupVars = values.startup();
  }
  if (record.listening !== undefined && pool !== null) readClientListening(record.listening, client);
  if (record.unnamed !== undefined) restoreUnnamed(client, ownBytesOf(record.unnamed));
  if (record.deallocating !== undefined) client.deallocating = deallocationOf(client, record.deallocating);
}

function deallocationOf({ statements }: ClientSocket, name: string | null): Deallocation | null {
  if (name === null) return new Deallocation(null);
  const statement = statements?.get(name);
  return statement === undefined ? null : new Deallocation(statement);
}

function databaseOf(name: string, fake: boolean): PgDatabase {
  const known = fake ? null : findDatabase(name);
  if (known !== null) return known;
  const mock = new PgDatabase(name);
  mock.fake = true;
  return mock;
}

function countClient(client: ClientSocket, { f }: ClientRecord, { flags }: Frame): void {
  if (client.db !== null && hasFlag('contributesDbClientCount', flags, f)) countForDatabase(client, client.db);
  const globalUser = client.loginUser?.globalUser ?? null;
  if (globalUser !== null && hasFlag('userConnectionCounted', flags, f)) countForUser(client, globalUser);
}
