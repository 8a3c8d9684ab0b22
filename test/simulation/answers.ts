/*
 * The messages that a simulated client expects, in their order. Any other message is a fault of the pooler, unless the
 * simulation knows a cause for it.
 */
import { errorFields, firstColumn } from './wire';

/** One expected message. */
export interface Owed {
  type: string;
  /** DataRow: the id that it answers */
  id?: string;
  /** DataRow: the text that follows the name of the session */
  text?: string;
  /** ReadyForQuery: transaction status */
  status?: string;
  /** the expected ErrorResponse: part of its text */
  error?: string;
  /** number of the request; after an error, the messages before the next ReadyForQuery are not expected any more */
  unit: number;
}

export interface ErrorSeen {
  severity: string;
  code: string;
  text: string;
}

/** Checks the messages of a server one after another. */
export class Answers {
  private owed: Owed[] = [];
  /** session that must answer while a transaction is open; '' = any session */
  session = '';
  /** session of the last answer */
  lastSession = '';

  /** @param unit the answer to one Query or Sync, ReadyForQuery last */
  expect(unit: Owed[]): void {
    this.owed.push(...unit);
  }

  get isEmpty(): boolean {
    return this.owed.length === 0;
  }

  get next(): Owed | null {
    return this.owed[0] ?? null;
  }

  /**
   * Compares a message with the expected one.
   * @returns null if it is correct, or the fault
   */
  take(type: string, body: string): string | null {
    const owed = this.owed[0];
    if (owed === undefined) return `a message '${type}' that nothing asked for: ${JSON.stringify(body.slice(0, 80))}`;
    if (owed.type !== type) return `a message '${type}' instead of '${owed.type}' of request ${owed.unit}`;
    this.owed.shift();
    if (type === 'Z' && owed.status !== undefined && body !== owed.status)
      return `status '${body}' instead of '${owed.status}' after request ${owed.unit}`;
    return type === 'D' ? this.checkRow(owed, firstColumn(body)) : null;
  }

  private checkRow(owed: Owed, text: string): string | null {
    const at = text.indexOf('@');
    const id = text.slice(0, at);
    const space = text.indexOf(' ', at);
    const session = text.slice(at + 1, space);
    if (id !== owed.id) return `the answer to ${id} instead of ${owed.id}`;
    this.lastSession = session;
    if (this.session !== '' && session !== this.session)
      return `an answer of session ${session} in a transaction of ${this.session}`;
    if (owed.text !== undefined && text.slice(space + 1) !== owed.text)
      return `'${text.slice(space + 1)}' instead of '${owed.text}' as answer to ${id}`;
    return null;
  }

  /**
   * Checks an ErrorResponse that ends the request, but not the session.
   * @param status the transaction status before it
   * @returns the fault, or null; `justified` tells whether a request may fail with it
   */
  takeError(body: string, status: string, justified: (error: ErrorSeen, owed: Owed) => boolean): string | null {
    const { S = '', C = '', M = '' } = errorFields(body);
    const owed = this.owed[0];
    if (owed === undefined) return `an error that nothing asked for: ${C} ${M}`;
    const asked = owed.type === 'E' && M.includes(owed.error ?? '');
    if (!asked && !justified({ severity: S, code: C, text: M }, owed)) return `an error without a reason: ${C} ${M}`;
    while (this.owed.length > 0 && this.owed[0]?.type !== 'Z') this.owed.shift();
    const ready = this.owed[0];
    // an error inside a transaction fails the transaction; an error in BEGIN or after COMMIT does not
    if (ready !== undefined) ready.status = status === 'I' ? 'I' : 'E';
    return null;
  }
}
