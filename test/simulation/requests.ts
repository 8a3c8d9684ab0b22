/*
 * The requests of simulated clients, with the expected answers.
 */
import type { Owed } from './answers';
import { cstring, int16, int32, packet } from './wire';

export interface Request {
  bytes: string;
  owed: Owed[];
  /** a statement that it prepares */
  prepares?: string;
  /** takes long enough for the client to cancel it */
  slow?: boolean;
}

const query = (sql: string): string => packet('Q', cstring(sql));
const parse = (name: string, sql: string): string => packet('P', cstring(name) + cstring(sql) + int16(0));
const bind = (portal: string, name: string): string =>
  packet('B', cstring(portal) + cstring(name) + int16(0) + int16(0) + int16(0));
const describe = (kind: string, name: string): string => packet('D', kind + cstring(name));
const execute = (portal: string): string => packet('E', cstring(portal) + int32(0));
const close = (kind: string, name: string): string => packet('C', kind + cstring(name));
const SYNC = packet('S');
export const TERMINATE = packet('X');

export const copyData = (rows: number): string => packet('d', 'row\n').repeat(rows) + packet('c');

/** Makes the requests of one client. */
export class RequestMaker {
  constructor(readonly client: string) {}

  private id(unit: number, part = ''): string {
    return `${this.client}.${unit}${part}`;
  }

  simple(unit: number, word: string, status: string, more = ''): Request {
    const id = this.id(unit);
    const isSelect = word === 'SELECT';
    return {
      bytes: query(`${word} id=${id}${more}`),
      owed: [
        ...(isSelect
          ? [
              { type: 'T', unit },
              { type: 'D', id, unit },
            ]
          : []),
        { type: 'C', unit },
        { type: 'Z', status, unit },
      ],
      slow: more.includes('slow='),
    };
  }

  /** A statement that fails. */
  failing(unit: number, status: string): Request {
    const id = this.id(unit);
    return {
      bytes: query(`FAIL id=${id}`),
      owed: [
        { type: 'E', error: id, unit },
        { type: 'Z', status, unit },
      ],
    };
  }

  empty(unit: number, status: string): Request {
    return {
      bytes: query(''),
      owed: [
        { type: 'I', unit },
        { type: 'Z', status, unit },
      ],
    };
  }

  /** Several statements of the extended protocol and one Sync. */
  extended(unit: number, count: number, status: string): Request {
    let bytes = '';
    const owed: Owed[] = [];
    for (let at = 0; at < count; at++) {
      const id = this.id(unit, `.${at}`);
      bytes += parse('', `SELECT id=${id}`) + bind('', '') + describe('P', '') + execute('');
      owed.push(
        { type: '1', unit },
        { type: '2', unit },
        { type: 'T', unit },
        { type: 'D', id, unit },
        { type: 'C', unit },
      );
    }
    owed.push({ type: 'Z', status, unit });
    return { bytes: bytes + SYNC, owed };
  }

  /** A pipeline that fails in the middle: the server skips the rest up to the Sync. */
  failingPipeline(unit: number, status: string): Request {
    const [before, bad, behind] = ['.a', '.b', '.c'].map((part) => this.id(unit, part)) as [string, string, string];
    const good = (id: string) => parse('', `SELECT id=${id}`) + bind('', '') + execute('');
    return {
      bytes: good(before) + parse('', `BADPARSE id=${bad}`) + bind('', '') + execute('') + good(behind) + SYNC,
      owed: [
        { type: '1', unit },
        { type: '2', unit },
        { type: 'D', id: before, unit },
        { type: 'C', unit },
        { type: 'E', error: bad, unit },
        { type: 'Z', status, unit },
      ],
    };
  }

  /** Prepares a statement of that name. Its text differs from client to client, so that a mix-up is noticed. */
  prepare(unit: number, name: string, status: string): Request {
    return {
      bytes: parse(name, `SELECT id=${this.client}.${name}`) + describe('S', name) + SYNC,
      owed: [
        { type: '1', unit },
        { type: 't', unit },
        { type: 'T', unit },
        { type: 'Z', status, unit },
      ],
      prepares: name,
    };
  }

  runPrepared(unit: number, name: string, status: string): Request {
    return {
      bytes: bind('', name) + execute('') + SYNC,
      owed: [
        { type: '2', unit },
        { type: 'D', id: `${this.client}.${name}`, unit },
        { type: 'C', unit },
        { type: 'Z', status, unit },
      ],
    };
  }

  closePrepared(unit: number, name: string, status: string): Request {
    return {
      bytes: close('S', name) + SYNC,
      owed: [
        { type: '3', unit },
        { type: 'Z', status, unit },
      ],
    };
  }

  setName(unit: number, value: string): Request {
    return this.plain(unit, `SET application_name = '${value}'`, 'I');
  }

  /** Changes the session in a way that the pooler does not track. */
  setOther(unit: number): Request {
    return this.plain(unit, `SET other = '${this.client}'`, 'I');
  }

  listen(unit: number, channel: string, status: string): Request {
    return this.plain(unit, `LISTEN ${channel} -- id=${this.id(unit)}`, status);
  }

  /** The same by the extended protocol. */
  listenExtended(unit: number, channel: string, status: string): Request {
    return {
      bytes: parse('', `LISTEN ${channel} -- id=${this.id(unit)}`) + bind('', '') + execute('') + SYNC,
      owed: [
        { type: '1', unit },
        { type: '2', unit },
        { type: 'C', unit },
        { type: 'Z', status, unit },
      ],
    };
  }

  /** A client that keeps its server because it listens gets rid of it. */
  unlistenAll(unit: number): Request {
    return this.plain(unit, 'UNLISTEN *', 'I');
  }

  /** @param channel may be * */
  unlisten(unit: number, channel: string, status: string): Request {
    return this.plain(unit, `UNLISTEN ${channel} -- id=${this.id(unit)}`, status);
  }

  /** Something that a standby refuses. */
  write(unit: number, status: string): Request {
    return this.plain(unit, `WRITE id=${this.id(unit)}`, status);
  }

  /** @param size bytes of its payload */
  notify(unit: number, channel: string, status: string, size: number): Request {
    return this.plain(unit, `NOTIFY ${channel} -- id=${this.id(unit)} size=${size}`, status);
  }

  private plain(unit: number, sql: string, status: string): Request {
    return {
      bytes: query(sql),
      owed: [
        { type: 'C', unit },
        { type: 'Z', status, unit },
      ],
    };
  }

  showName(unit: number, value: string, status: string): Request {
    const id = this.id(unit);
    return {
      bytes: query(`SHOW of=application_name id=${id}`),
      owed: [
        { type: 'T', unit },
        { type: 'D', id, text: value, unit },
        { type: 'C', unit },
        { type: 'Z', status, unit },
      ],
    };
  }

  /** COPY from the client, which sends the rows after CopyInResponse. */
  copy(unit: number, status: string): Request {
    return {
      bytes: query(`COPY id=${this.id(unit)}`),
      owed: [
        { type: 'G', unit },
        { type: 'C', unit },
        { type: 'Z', status, unit },
      ],
    };
  }
}
