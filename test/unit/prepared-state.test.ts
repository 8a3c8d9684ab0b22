/*
 * The records of prepared statements without connections: how long the cache keeps a query, what an error undoes, and
 * what a handover carries. Checked against a complete model.
 */

import assert from 'node:assert/strict';
import { ClientSocket, PgDatabase, PgPool, ServerSocket, SocketState } from '../../src/core/pool/bouncer';
import {
  getPreparedStatement,
  NoteKind,
  type PgPreparedStatement,
  queryCacheSize,
  RequestNote,
  ServerStatement,
} from '../../src/core/pool/prepare';
import { RequestQueue, ResponseAction } from '../../src/core/pool/requests';
import {
  addClientStatement,
  addServerStatement,
  clearRequestsUntil,
  clientPreparedEntries,
  deallocateAll,
  freeClientStatements,
  freeServerStatements,
  preparedCount,
  requestPreparedEntries,
  restoreClientPrepared,
  restoreRequests,
  restoreServerPrepared,
  serverPreparedEntries,
  settleFirst,
} from '../../src/core/pool/statements';
import { PqMsg } from '../../src/core/wire/packets';
import { describe, it } from '../harness/limits';

function query(text: string): PgPreparedStatement {
  return getPreparedStatement(Buffer.from(`${text}\0\0\0`, 'latin1'), '');
}

function linked(): { client: ClientSocket; server: ServerSocket; requests: RequestQueue } {
  const client = new ClientSocket(SocketState.CL_FREE);
  const server = new ServerSocket(SocketState.SV_FREE, new PgPool(new PgDatabase('db'), null));
  client.link = server;
  server.link = client;
  return { client, server, requests: server.requests };
}

function prepareOn(server: ServerSocket, ps: PgPreparedStatement, client: ClientSocket | null = null, name = ''): void {
  const statement = new ServerStatement(ps);
  const named = client === null ? null : addClientStatement(client, name, ps);
  server.requests.push(PqMsg.Parse, ResponseAction.FORWARD, new RequestNote(NoteKind.PARSE, statement, named));
  addServerStatement(server, statement);
}

function evictFrom(server: ServerSocket): void {
  const oldest = server.statements?.lru.head as ServerStatement;
  server.requests.push(PqMsg.Close, ResponseAction.SKIP, new RequestNote(NoteKind.CLOSE, oldest, null));
  server.statements?.remove(oldest);
}

function names(server: ServerSocket): string[] {
  return serverPreparedEntries(server).map(({ query: bytes }) => bytes.toString('latin1', 0, bytes.indexOf(0)));
}

describe('the query cache', () => {
  it('the query cache keeps a query while a client, a server or an outstanding Close uses it', () => {
    const { client, server } = linked();
    prepareOn(server, query('q'), client, 'name');
    assert.equal(queryCacheSize(), 1);
    assert.equal(query('q'), query('q'));
    settleFirst(server);
    freeClientStatements(client);
    evictFrom(server);
    assert.equal(preparedCount(server), 0);
    assert.equal(queryCacheSize(), 1);
    settleFirst(server);
    assert.equal(queryCacheSize(), 0);
  });

  it('the query cache distinguishes long queries with the same beginning', () => {
    const { client, server } = linked();
    const long = 'x'.repeat(10_000);
    for (const end of ['a', 'b', 'c']) addClientStatement(client, end, query(long + end));
    assert.equal(queryCacheSize(), 3);
    assert.equal(query(`${long}b`), client.statements?.get('b')?.ps);
    freeClientStatements(client);
    freeServerStatements(server);
    assert.equal(queryCacheSize(), 0);
  });
});

describe('requests with notes', () => {
  it('requests with notes keep their order when the queue grows, shifts and is trimmed', () => {
    const requests = new RequestQueue();
    const notes: RequestNote[] = [];
    let shifted = 0;
    for (let i = 0; i < 5000; i++) {
      const note = i % 3 === 0 ? new RequestNote(NoteKind.PARSE, null, null) : null;
      if (note !== null) notes.push(note);
      requests.push(PqMsg.Parse, i % 5 === 0 ? ResponseAction.FAKE : ResponseAction.FORWARD, note);
      if (i % 4 === 3) {
        const first = requests.firstNote();
        assert.equal(first, shifted % 3 === 0 ? (notes.shift() ?? null) : null);
        assert.equal(requests.firstAction(), shifted % 5 === 0 ? ResponseAction.FAKE : ResponseAction.FORWARD);
        requests.shift();
        shifted++;
      }
    }
    assert.deepEqual(requests.allNotes(), notes);
    const found: [RequestNote, number][] = [];
    requests.eachNote((note, at) => found.push([note, at]));
    const first = (3 - (shifted % 3)) % 3;
    assert.deepEqual(
      found,
      notes.map((note, i) => [note, first + 3 * i]),
    );
    requests.clear();
    assert.equal(requests.fakes, 0);
  });
});

describe('any sequence of pipelines, errors and DISCARD ALLs', () => {
  it('any sequence of pipelines, errors and DISCARD ALLs keeps the statement records correct', () => {
    let seed = 42;
    const random = (n: number) => {
      seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0;
      return (seed >>> 8) % n;
    };
    for (let run = 0; run < 200; run++) {
      const { client, server, requests } = linked();
      /** the statements that the server has */
      const real = new Set<string>();
      for (let round = 0; round < 10; round++) {
        const sent: [string, string][] = [];
        for (let i = random(8); i >= 0; i--) {
          const text = `q${random(4)}`;
          if (server.statements?.find(query(text)) !== undefined) continue;
          prepareOn(server, query(text), client.statements?.has(text) ? null : client, text);
          sent.push(['parse', text]);
          while (preparedCount(server) > 2) {
            sent.push(['close', names(server)[0] as string]);
            evictFrom(server);
          }
          if (random(6) === 0) {
            requests.push(PqMsg.Execute, ResponseAction.FORWARD);
            sent.push(['discard', '']);
          }
        }
        requests.push(PqMsg.Sync, ResponseAction.FORWARD);
        const failAt = random(2) === 0 ? random(sent.length + 1) : sent.length;
        for (const [what, text] of sent.slice(0, failAt)) {
          if (what === 'parse') {
            assert.ok(!real.has(text), `${text} is prepared twice`);
            real.add(text);
          } else if (what === 'close') {
            real.delete(text);
          } else {
            real.clear();
            deallocateAll(server);
          }
          settleFirst(server);
        }
        clearRequestsUntil(server, PqMsg.Sync, PqMsg.Sync);
        assert.equal(requests.count, 0);
        assert.deepEqual(names(server).sort(), [...real].sort());
        assert.equal(server.closeNeeded, false);
      }
      freeClientStatements(client);
      freeServerStatements(server);
      for (let i = 0; i < 4; i++) assert.equal(query(`q${i}`).useCount, 0);
    }
  });
});

describe('a handover', () => {
  it('a handover carries statement names, statements in order, and the notes of requests', () => {
    const from = linked();
    for (const text of ['one', 'two', 'three']) prepareOn(from.server, query(text), from.client, `my ${text}`);
    settleFirst(from.server);
    evictFrom(from.server);
    const entries = JSON.stringify([
      clientPreparedEntries(from.client),
      serverPreparedEntries(from.server),
      requestPreparedEntries(from.server),
    ]);
    const queue = Array.from({ length: from.requests.count }, (_, at) => from.requests.entryAt(at));
    freeClientStatements(from.client);
    freeServerStatements(from.server);

    const to = linked();
    const [ofClient, ofServer, ofRequests] = JSON.parse(entries, (_key, value) =>
      value?.type === 'Buffer' ? Buffer.from(value.data) : value,
    );
    restoreClientPrepared(to.client, ofClient);
    assert.equal(restoreServerPrepared(to.server, ofServer), true);
    restoreRequests(to.server, queue, ofRequests);
    assert.deepEqual([...(to.client.statements?.keys() ?? [])], ['my one', 'my two', 'my three']);
    assert.deepEqual(names(to.server), ['two', 'three']);
    // an earlier error undoes them in the new process as it would have in the old process
    clearRequestsUntil(to.server, PqMsg.Sync, PqMsg.Sync);
    assert.deepEqual(names(to.server), ['one']);
    assert.equal(to.client.statements?.get('my two')?.unsure, true);

    // a number that means another query in this process
    const clash = new ServerSocket(SocketState.SV_FREE, new PgPool(new PgDatabase('db'), null));
    const { queryId } = serverPreparedEntries(to.server)[0] as { queryId: number };
    const other = { queryId, query: Buffer.from('other\0\0\0'), reading: '', stale: false };
    assert.equal(restoreServerPrepared(clash, [other]), false);
    freeClientStatements(to.client);
    freeServerStatements(to.server);
    freeServerStatements(clash);
  });
});
