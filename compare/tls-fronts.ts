/*
 * Special servers: a server that never answers, and TLS servers of every kind in front of the PostgreSQL server, each
 * with its own certificate and behaviour. Started by the test bed, and named in scenarios' configs.
 */

import { readFileSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { TLSSocket, type TlsOptions } from 'node:tls';
import type { Cert } from '../test/harness/certs';
import { int32, SSL_REQUEST } from '../test/harness/raw-client';

/** An SSLRequest: its length and code. */
const SSL_REQUEST_BYTES = Buffer.concat([int32(8), int32(SSL_REQUEST)]);

/** How a TLS server behaves. */
export interface FrontOptions {
  cert: Cert;
  /** protocols, ciphers, whether it asks for a certificate */
  tls?: TlsOptions;
  /** the answer to SSLRequest instead of S, before TLS starts */
  answer?: Buffer;
}

/** A listening port of 127.0.0.1. */
export class TlsFront {
  private readonly sockets = new Set<Socket>();

  private constructor(private readonly server: Server) {}

  get port(): number {
    return (this.server.address() as AddressInfo).port;
  }

  static async start(onSocket: (socket: Socket, front: TlsFront) => void): Promise<TlsFront> {
    const server = createServer();
    const front = new TlsFront(server);
    server.on('connection', (socket) => {
      front.adopt(socket);
      onSocket(socket, front);
    });
    await new Promise<void>((settle) => server.listen(0, '127.0.0.1', settle));
    return front;
  }

  /** Accepts connections and stays silent. */
  static mute(): Promise<TlsFront> {
    return TlsFront.start((socket) => socket.resume());
  }

  /** A TLS server that forwards the decrypted bytes to the PostgreSQL server on that port. */
  static tls(port: number, frontOptions: FrontOptions): Promise<TlsFront> {
    return TlsFront.start((socket, front) => {
      socket.once('readable', () => {
        const first: Buffer = socket.read() ?? Buffer.alloc(0);
        if (!first.equals(SSL_REQUEST_BYTES)) {
          socket.unshift(first);
          front.relay(socket, port);
          return;
        }
        socket.write(frontOptions.answer ?? 'S');
        const { cert, key } = frontOptions.cert;
        const identity = { cert: readFileSync(cert), key: readFileSync(key) };
        const secure = new TLSSocket(socket, { isServer: true, ...identity, ...frontOptions.tls });
        front.adopt(secure);
        secure.once('secure', () => front.relay(secure, port));
      });
    });
  }

  stop(): void {
    for (const socket of this.sockets) socket.destroy();
    this.server.close();
  }

  private adopt(socket: Socket): void {
    this.sockets.add(socket);
    socket.setNoDelay(true);
    socket.on('error', () => socket.destroy());
    socket.once('close', () => this.sockets.delete(socket));
  }

  /** Forwards bytes in both directions; the end of either connection ends the other. */
  private relay(socket: Socket, port: number): void {
    const behind = connect(port, '127.0.0.1');
    this.adopt(behind);
    socket.pipe(behind);
    behind.pipe(socket);
    socket.once('close', () => behind.destroy());
    behind.once('close', () => socket.destroy());
  }
}
