/*
 * A gate between the pooler and a server that can hold back bytes, for the tests of timeouts.
 */

import { connect, createServer, type Server, type Socket } from 'node:net';

export const TX = { pool_mode: 'transaction' };

/** Before any default would strike, so that a setting that is not heeded shows. */
export const SOON_MS = 4500;

export const pause = (ms: number) => new Promise((wake) => setTimeout(wake, ms));

/** Stands between pooler and PostgreSQL, so that the way there can be cut. */
class Gate {
  private readonly sockets = new Set<Socket>();
  /** connections that came so far */
  count = 0;

  private constructor(
    private readonly server: Server,
    readonly port: number,
  ) {}

  /** @param onward port to pass everything to; null swallows what comes and never answers */
  static open(onward: number | null): Promise<Gate> {
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
      server.listen(0, '127.0.0.1', () => {
        gate = new Gate(server, (server.address() as { port: number }).port);
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
