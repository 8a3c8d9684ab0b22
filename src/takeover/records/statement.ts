/*
 * The record of a prepared query, and the references to it in the records of clients and servers. A query is sent once,
 * before the first socket that has prepared it.
 */

import type { ClientPrepared, ServerPrepared } from '../../core/pool/statements';
import type { Frame } from './frame';

/** A query that a client has prepared: its raw bytes are the text, the number of parameter types and the types. */
export interface StatementRecord {
  k: 'statement';
  queryId: number;
  length: number;
  /** how its constants are read, '' = left out; versions that do not know it do not distinguish such queries */
  reading?: string;
}

/** A client's prepared statement: its name, whether its state is unsure, the number of its query. */
export type ClientStatementTuple = [string, boolean, number];

/** The fields that a client's and a server's statement have in common. */
export type NumberedQuery = Omit<ServerPrepared, 'stale'>;

/** Called for each query that a record refers to. */
export type SeeQuery = (query: NumberedQuery) => void;

export function statementRecord({ queryId, query, reading }: NumberedQuery): StatementRecord {
  const record: StatementRecord = { k: 'statement', queryId, length: query.length };
  if (reading !== '') record.reading = reading;
  return record;
}

/** @param raw copied, because the receive buffer is reused */
export function readStatement(record: StatementRecord, raw: Buffer, frame: Frame): void {
  const { queryId, length, reading = '' } = record;
  frame.queries.set(queryId, { queryId, query: Buffer.from(raw.subarray(0, length)), reading });
}

export function clientTuple(entry: ClientPrepared): ClientStatementTuple {
  return [entry.name, entry.unsure, entry.queryId];
}

function queryOf(queryId: number, frame: Frame): NumberedQuery {
  const query = frame.queries.get(queryId);
  if (query === undefined) throw new Error(`unknown prepared statement ${queryId}`);
  return query;
}

export function readClientTuple([name, unsure, queryId]: ClientStatementTuple, frame: Frame): ClientPrepared {
  return { name, unsure, ...queryOf(queryId, frame) };
}

export function readServerStatement(queryId: number, stale: boolean, frame: Frame): ServerPrepared {
  return { ...queryOf(queryId, frame), stale };
}
