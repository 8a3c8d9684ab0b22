/*
 * A gate between pooler and server, for the tests of timeouts: it can refuse connections or never answer.
 */

import { connect, createServer, type Server, type Socket } from 'node:net';
import { freePort } from '../../tools/postgres';

export const TX = { pool_mode: 'transaction' };

/** Shorter than every default timeout, so that an ignored setting fails the test. */
export const SOON_MS = 4500;

export const pause = (ms: number) => new Promise((wake) => setTimeout(wake, ms));

/** Forwards connections of the pooler to PostgreSQL, or refuses them. */
class Gate {
  private readonly sockets = new Set<Socket>();
  /** connections accepted so far */
  count = 0;

  private constructor(
    private readonly server: Server,
    readonly port: number,
  ) {}

  /** @param onward port to forward connections to; null reads all bytes and never answers */
  static async open(onward: number | null): Promise<Gate> {
    // while it refuses connections, no other process takes the port
    const port = await freePort();
    return new Promise((settle) => {
      const server = createServer((socket) => {
        gate.count++;
        gate.keep(socket);
        if (onward === null) return;
        const there = gate.keep(connect(onward, '127.0.0.1'));
        socket.pipe(there).pipe(socket);
        socket.on('close', () => there.destroy());
        there.on('close', () => socket.destroy());
      });
      let gate: Gate;
      server.listen(port, '127.0.0.1', () => {
        gate = new Gate(server, port);
        settle(gate);
      });
    });
  }

  /** New connections are refused from now on. */
  refuse(): void {
    this.server.close();
  }

  accept(): Promise<void> {
    return new Promise((settle) => this.server.listen(this.port, '127.0.0.1', settle));
  }

  cut(): void {
    for (const socket of this.sockets) socket.destroy();
  }

  close(): void {
    this.server.close();
    this.cut();
  }

  private keep(socket: Socket): Socket {
    this.sockets.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => this.sockets.delete(socket));
    return socket;
  }
}

export async function withGate(onward: number | null, body: (gate: Gate) => Promise<void>): Promise<void> {
  const gate = await Gate.open(onward);
  await body(gate).finally(() => gate.close());
}
