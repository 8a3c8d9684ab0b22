/*
 * Converts received messages to comparable text: one line per message, and result sets as tables. Values that differ
 * from run to run (pids, keys, salts, nonces) are left out. Called by the steps.
 */

import { errorFields, type Message, parameterStatus, rowValues } from '../test/harness/raw-client';

/** A result set. */
export interface Table {
  columns: { name: string; type: string }[];
  rows: (string | null)[][];
}

/** One result of a step: a line of text, or a result set. */
export type Item = string | Table;

/** Longest value shown in full; longer values are shown as their length and end. */
const SHOWN_MAX = 200;

/** The types that the console and the scenarios use; other types are shown by number. */
const TYPE_NAMES: Record<number, string> = {
  16: 'bool',
  17: 'bytea',
  18: 'char',
  20: 'int8',
  23: 'int4',
  25: 'text',
  1700: 'numeric',
};

const AUTH_NAMES: Record<number, string> = {
  0: 'Ok',
  3: 'CleartextPassword',
  5: 'MD5Password',
  10: 'SASL',
  11: 'SASLContinue',
  12: 'SASLFinal',
};

/** Fields of errors and notices in the order shown; places in the server's source (F, L, R) are left out. */
const ERROR_FIELDS = ['S', 'V', 'C', 'M', 'D', 'H', 'P', 'W', 's', 't', 'c', 'n'];

/** Messages whose body is not shown. */
const PLAIN: Record<string, string> = {
  1: 'ParseComplete',
  2: 'BindComplete',
  3: 'CloseComplete',
  I: 'EmptyQueryResponse',
  c: 'CopyDone',
  n: 'NoData',
  s: 'PortalSuspended',
};

function shortened(text: string): string {
  if (text.length <= SHOWN_MAX) return text;
  return `${text.length} bytes ending in "${text.slice(-20)}"`;
}

function authentication(body: Buffer): string {
  const code = body.readInt32BE(0);
  const rest = body.toString('latin1', 4);
  const name = `Authentication${AUTH_NAMES[code] ?? code}`;
  if (code === 10) return `${name} ${rest.split('\0').filter(Boolean).join(' ')}`;
  if (code === 11) return `${name} ${rest.replace(/^r=[^,]*,s=[^,]*,/, 'r=<nonce>,s=<salt>,')}`;
  if (code === 12) return `${name} ${rest.replace(/^v=.*/, 'v=<signature>')}`;
  return `${name} (${body.length} bytes)`;
}

function fieldsText(msg: Message): string {
  const fields = errorFields(msg);
  const shown = ERROR_FIELDS.filter((letter) => fields[letter] !== undefined);
  return shown.map((letter) => `${letter}=${fields[letter]}`).join(' ');
}

function columnsOf(body: Buffer): Table['columns'] {
  const columns: Table['columns'] = [];
  let at = 2;
  for (let left = body.readUInt16BE(0); left > 0; left--) {
    const end = body.indexOf(0, at);
    const oid = body.readInt32BE(end + 7);
    columns.push({ name: body.toString('latin1', at, end), type: TYPE_NAMES[oid] ?? String(oid) });
    at = end + 19;
  }
  return columns;
}

function negotiation(body: Buffer): string {
  const names = body.toString('latin1', 8).split('\0').filter(Boolean);
  return `NegotiateProtocolVersion minor ${body.readInt32BE(0) & 0xffff} unknown [${names.join(' ')}]`;
}

function notification(body: Buffer): string {
  const [channel, payload] = body.toString('latin1', 4).split('\0');
  return `NotificationResponse ${channel} "${payload}"`;
}

function messageText(msg: Message): string {
  const { type, body } = msg;
  switch (type) {
    case 'R':
      return authentication(body);
    case 'S':
      return `ParameterStatus ${parameterStatus(msg).join(' = ')}`;
    case 'K':
      return `BackendKeyData (${body.length} bytes)`;
    case 'Z':
      return `ReadyForQuery ${body.toString('latin1')}`;
    case 'E':
      return `ErrorResponse ${fieldsText(msg)}`;
    case 'N':
      return `NoticeResponse ${fieldsText(msg)}`;
    case 'C':
      return `CommandComplete ${body.toString('latin1', 0, body.length - 1)}`;
    case 'A':
      return notification(body);
    case 'd':
      return `CopyData ${JSON.stringify(shortened(body.toString('latin1')))}`;
    case 'v':
      return negotiation(body);
    default:
      return PLAIN[type] ?? `message '${type}' ${shortened(body.toString('hex'))}`;
  }
}

/** Converts messages to items; the rows after a RowDescription form one table with it. */
export function decode(messages: readonly Message[]): Item[] {
  const items: Item[] = [];
  let table: Table | null = null;
  for (const msg of messages) {
    if (msg.type === 'T') {
      table = { columns: columnsOf(msg.body), rows: [] };
      items.push(table);
    } else if (msg.type === 'D') {
      const values = rowValues(msg).map((value) => (value === null ? null : shortened(value)));
      if (table !== null) table.rows.push(values);
      else items.push(`DataRow ${JSON.stringify(values)}`);
    } else {
      table = null;
      items.push(messageText(msg));
    }
  }
  return items;
}
