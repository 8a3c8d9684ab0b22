/*
 * A minimal PostgreSQL server for the fuzzer. It follows the protocol, and its answers depend only on the text of a
 * query. So a client must get the same answers directly and through the pooler, whatever names the statements have.
 */

import { cstring, int16, int32, message } from '../harness/raw-client';

const complete = (tag: string) => message('C', cstring(tag));
const failure = (text: string, code: string) =>
  message('E', cstring('SERROR'), cstring(`C${code}`), cstring(`M${text}`), Buffer.alloc(1));
const UNKNOWN = '26000';

/** PostgreSQL's error about an unknown statement. */
function notThere(name: string): string {
  return name === '' ? 'unnamed prepared statement does not exist' : `prepared statement "${name}" does not exist`;
}

/** The kind of a query: its first word. */
export class Backend {
  readonly statements = new Map<string, string>();
  private readonly portals = new Map<string, string>();
  private pending: Buffer = Buffer.alloc(0);
  private out: Buffer[] = [];
  private status = 'I';
  /** after an error: up to the next Sync */
  private skipping = false;
  /** the protocol that has begun a COPY FROM STDIN */
  private copying: 'no' | 'simple' | 'extended' = 'no';
  /** this server has ended the connection */
  gaveUp = false;

  /** Processes bytes of the client. @returns the answer */
  process(bytes: Buffer): Buffer {
    this.pending = Buffer.concat([this.pending, bytes]);
    for (;;) {
      if (this.pending.length < 5 || this.gaveUp) break;
      const length = this.pending.readUInt32BE(1) + 1;
      if (this.pending.length < length) break;
      const type = this.pending.toString('latin1', 0, 1);
      const body = this.pending.subarray(5, length);
      this.pending = this.pending.subarray(length);
      this.handle(type, body);
    }
    const out = Buffer.concat(this.out);
    this.out = [];
    return out;
  }

  private ready(): void {
    this.skipping = false;
    if (this.status === 'I') this.portals.clear();
    this.out.push(message('Z', Buffer.from(this.status)));
  }

  private fail(text: string, simple: boolean, code = 'XX000'): void {
    this.out.push(failure(text, code));
    if (this.status === 'T') this.status = 'E';
    if (simple) this.ready();
    else this.skipping = true;
  }

  private handle(type: string, body: Buffer): void {
    if (this.copying !== 'no') {
      this.copy(type, body);
      return;
    }
    if (type === 'S') {
      this.ready();
      return;
    }
    if (this.skipping || 'dcfH'.includes(type)) return;
    const words = body.toString('latin1').split('\0');
    const [first = '', second = ''] = words;
    const kind = body.toString('latin1', 0, 1);
    switch (type) {
      case 'Q':
        this.statements.delete('');
        this.run(first, true);
        return;
      case 'P':
        if (first === '') this.statements.delete('');
        if (this.status === 'E' && second !== '' && !second.startsWith('ROLLBACK')) this.fail('aborted', false);
        else if (second.startsWith('BADPARSE')) this.fail('syntax', false);
        else if (first !== '' && this.statements.has(first))
          this.fail(`prepared statement "${first}" already exists`, false, '42P05');
        else {
          this.statements.set(first, second);
          this.out.push(message('1'));
        }
        return;
      case 'B': {
        const query = this.statements.get(second);
        if (query === undefined) this.fail(notThere(second), false, UNKNOWN);
        else if (this.status === 'E' && !query.startsWith('ROLLBACK')) this.fail('aborted', false);
        else if (query.startsWith('BADBIND')) this.fail('bad bind', false);
        else {
          this.portals.set(first, query);
          this.out.push(message('2'));
        }
        return;
      }
      case 'D': {
        const query = (kind === 'S' ? this.statements : this.portals).get(first.slice(1));
        if (query === undefined && kind === 'S') this.fail(notThere(first.slice(1)), false, UNKNOWN);
        else if (query === undefined) this.fail('nothing to describe', false);
        else {
          if (kind === 'S') this.out.push(message('t', int16(0)));
          this.out.push(query.startsWith('SELECT') ? message('T', int16(1), cstring(query)) : message('n'));
        }
        return;
      }
      case 'E': {
        const query = this.portals.get(first);
        if (query === undefined) this.fail('no portal', false);
        else this.run(query, false);
        return;
      }
      case 'C':
        (kind === 'S' ? this.statements : this.portals).delete(first.slice(1));
        this.out.push(message('3'));
        return;
      case 'X':
        return;
      default:
        throw new Error(`the pooler sent a message '${type}'`);
    }
  }

  private run(query: string, simple: boolean): void {
    const word = query.split(' ')[0] as string;
    if (this.status === 'E' && word !== 'ROLLBACK') {
      this.fail('aborted', simple);
      return;
    }
    switch (word) {
      case 'BEGIN':
        this.status = 'T';
        break;
      case 'ROLLBACK':
        this.status = 'I';
        break;
      case 'FAIL':
        this.fail(query, simple);
        return;
      case 'COPY':
        this.copying = simple ? 'simple' : 'extended';
        this.out.push(message('G', Buffer.alloc(3)));
        return;
      case 'DEALLOCATE':
      case 'DISCARD': {
        const name = query.split(' ')[1] as string;
        if (name !== 'ALL' && !this.statements.delete(name)) {
          this.fail(notThere(name), simple, UNKNOWN);
          return;
        }
        if (name === 'ALL') for (const key of this.statements.keys()) if (key !== '') this.statements.delete(key);
        this.out.push(complete(name === 'ALL' ? `${word} ALL` : word));
        if (simple) this.ready();
        return;
      }
      case '':
        this.out.push(message('I'));
        if (simple) this.ready();
        return;
      case 'SELECT':
        if (simple) this.out.push(message('T', int16(1), cstring(query)));
        this.out.push(message('D', int16(1), int32(query.length), Buffer.from(query, 'latin1')));
    }
    this.out.push(complete(word));
    if (simple) this.ready();
  }

  private copy(type: string, body: Buffer): void {
    const simple = this.copying === 'simple';
    if (type === 'S' || type === 'H') return;
    if (type === 'd' && !body.includes('bad')) return;
    this.copying = 'no';
    if (!'cfd'.includes(type)) {
      // out of step with the client
      this.out.push(failure('unexpected message in COPY', 'XX000'));
      this.gaveUp = true;
      return;
    }
    if (type === 'c') {
      this.out.push(complete('COPY 1'));
      if (simple) this.ready();
    } else {
      this.fail(type === 'd' ? 'bad data' : 'copy failed', simple);
    }
  }
}
