/*
 * A PostgreSQL that accepts every login, for more connections than a real one can have processes: for thousands of pools
 * without servers, and for thousands of idle servers.
 */
import { createServer, type Server, type Socket } from 'node:net';
import { cstring, message } from '../test/harness/raw-client';

const PARAMETERS = {
  server_version: '15.0',
  client_encoding: 'UTF8',
  DateStyle: 'ISO',
  TimeZone: 'UTC',
  standard_conforming_strings: 'on',
};
const READY = message('Z', Buffer.from('I'));
const WELCOME = Buffer.concat([
  message('R', Buffer.alloc(4)),
  ...Object.entries(PARAMETERS).map(([name, value]) => message('S', Buffer.concat([cstring(name), cstring(value)]))),
  message('K', Buffer.alloc(8, 1)),
  READY,
]);
const DONE = Buffer.concat([message('C', cstring('SELECT 0')), READY]);

interface FakeServer {
  port: number;
  server: Server;
}

function listen(onConnection: (socket: Socket) => void): Promise<FakeServer> {
  const server = createServer((socket) => {
    socket.on('error', () => socket.destroy());
    onConnection(socket);
  });
  return new Promise((settle) => {
    server.listen(0, '127.0.0.1', () => {
      const address = server.address();
      settle({ port: typeof address === 'object' && address !== null ? address.port : 0, server });
    });
  });
}

/** Closes each connection after its login, so that pools exist without servers. */
export function startAuthOnlyServer(): Promise<FakeServer> {
  return listen((socket) => {
    socket.once('data', () => socket.end(WELCOME));
    socket.resume();
  });
}

/** Answers queries only when as many connections as that have one, so that the pooler needs as many servers. */
export function startWaitingServer(connections: number): Promise<FakeServer> {
  const waiting = new Set<Socket>();
  return listen((socket) => {
    socket.once('data', () => {
      socket.write(WELCOME);
      socket.on('data', (chunk: Buffer) => {
        // the pooler's own SET for the client's parameters comes before the query
        if (chunk.toString('latin1', 5, 9) === 'SET ') {
          socket.write(DONE);
          return;
        }
        waiting.add(socket);
        if (waiting.size < connections) return;
        for (const each of waiting) each.write(DONE);
        waiting.clear();
      });
    });
  });
}
