/*
 * A gate between a pooler and PostgreSQL that holds connections: before their first packet reaches the server, or
 * before the server's first answer reaches the pooler.
 */

import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { eventually } from '../harness';
import { CANCEL_REQUEST, SSL_REQUEST } from './raw-client';

type Holds = 'nothing' | 'cancels' | 'logins' | 'answers to logins';

function isRequest(first: Buffer, code: number): boolean {
  return first.length >= 8 && first.readInt32BE(4) === code;
}

export class Gate {
  holds: Holds = 'nothing';
  /** connections held now */
  held = 0;
  port = 0;
  private readonly releases = new Set<() => void>();
  private readonly sockets = new Set<Socket>();
  private readonly server = createServer((client) => this.accept(client));

  private constructor(private readonly serverPort: number) {}

  static async open(serverPort: number): Promise<Gate> {
    const gate = new Gate(serverPort);
    gate.server.listen(0, '127.0.0.1');
    await once(gate.server, 'listening');
    gate.port = (gate.server.address() as { port: number }).port;
    return gate;
  }

  async waitHeld(count: number): Promise<void> {
    await eventually(`${count} connections to be held up`, () => this.held === count);
  }

  /** Releases all connections, and holds no further connection. */
  releaseAll(): void {
    this.holds = 'nothing';
    for (const go of this.releases) go();
  }

  close(): void {
    for (const socket of this.sockets) socket.destroy();
    this.server.close();
  }

  private accept(client: Socket): void {
    this.track(client);
    client.once('data', (first: Buffer) => {
      // a request within TLS cannot be told from a login: nothing else connects while requests are held
      const secured = this.holds === 'cancels' && isRequest(first, SSL_REQUEST);
      const cancel = secured || isRequest(first, CANCEL_REQUEST);
      const holds = this.holds === (cancel ? 'cancels' : 'logins');
      if (holds) {
        this.hold(client, () => this.pass(client, first, false));
        client.resume();
      } else {
        this.pass(client, first, !cancel && this.holds === 'answers to logins');
      }
    });
  }

  private pass(client: Socket, first: Buffer, holdAnswer: boolean): void {
    const server = connect(this.serverPort, '127.0.0.1');
    this.track(server);
    for (const [one, other] of [
      [client, server],
      [server, client],
    ] as const) {
      one.once('close', () => other.destroy());
    }
    server.write(first);
    client.pipe(server);
    if (holdAnswer) this.hold(client, () => server.pipe(client));
    else server.pipe(client);
  }

  private hold(client: Socket, go: () => void): void {
    this.held++;
    const once = () => {
      if (!this.releases.delete(release)) return;
      this.held--;
    };
    const release = () => {
      once();
      go();
    };
    this.releases.add(release);
    client.once('close', once);
  }

  private track(socket: Socket): void {
    this.sockets.add(socket);
    socket.on('error', () => {});
    socket.once('close', () => this.sockets.delete(socket));
  }
}
