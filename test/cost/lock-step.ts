/*
 * A fixed workload for cost.test.ts: clients that send one small query each and wait for the answers, and a server that
 * answers only when all queries of a round have arrived. Two steps of a round can be held up, so that everything that
 * belongs to a step reaches the pooler at once.
 */
import { createServer, type Server, type Socket } from 'node:net';
import { cstring, int16, int32, message, RawClient, withTimeout } from '../harness';

const QUERY = message('Q', cstring('SELECT 1'));
const COLUMN = Buffer.concat([cstring('one'), int32(0), int16(0), int32(23), int16(4), int32(-1), int16(0)]);
const ANSWER = Buffer.concat([
  message('T', int16(1), COLUMN),
  message('D', int16(1), int32(1), Buffer.from('1')),
  message('C', cstring('SELECT 1')),
  message('Z', Buffer.from('I')),
]);
const WELCOME = Buffer.concat([
  message('R', int32(0)),
  message('S', cstring('server_version'), cstring('15.0')),
  message('K', int32(1), int32(1)),
  message('Z', Buffer.from('I')),
]);
const ROUND_MS_MAX = 60_000;

/** Resolves once `total` bytes in all have been reported. */
class ByteCount {
  private seen = 0;
  private wanted = 0;
  private settle: () => void = () => {};

  add(bytes: number): void {
    this.seen += bytes;
    if (this.seen >= this.wanted) this.settle();
  }

  wait(total: number, what: string): Promise<void> {
    this.wanted += total;
    const done = new Promise<void>((settle) => {
      this.settle = settle;
      this.add(0);
    });
    return withTimeout(done, what, ROUND_MS_MAX);
  }
}

/** A PostgreSQL server that lets every client in, and answers as many queries as a round has at once. */
export class LockStepServer {
  private readonly queries = new ByteCount();
  /** the connections with a query that is not answered yet */
  private readonly asking: Socket[] = [];

  private constructor(
    private readonly server: Server,
    readonly port: number,
  ) {
    server.on('connection', (socket) => this.serve(socket));
    // a test that fails leaves it open
    server.unref();
  }

  static start(): Promise<LockStepServer> {
    const server = createServer({ noDelay: true });
    return new Promise((settle) => {
      server.listen(0, '127.0.0.1', () => {
        settle(new LockStepServer(server, (server.address() as { port: number }).port));
      });
    });
  }

  private serve(socket: Socket): void {
    socket.unref();
    socket.on('error', () => socket.destroy());
    socket.once('data', () => {
      socket.write(WELCOME);
      // a query arrives in one piece, because its client waits for the answer
      socket.on('data', (bytes) => {
        this.asking.push(socket);
        this.queries.add(bytes.length);
      });
    });
  }

  allAsked(count: number): Promise<void> {
    return this.queries.wait(count * QUERY.length, 'the queries at the server');
  }

  /** Answers all queries. Resolves when the kernel has the answers. */
  async answerAll(): Promise<void> {
    const sockets = this.asking.splice(0);
    await Promise.all(sockets.map((socket) => new Promise((settle) => socket.write(ANSWER, settle))));
  }

  stop(): void {
    this.server.close();
  }
}

/** What holds the pooler up during a step. */
export interface Gate {
  freeze(): Promise<void>;
  thaw(): Promise<void>;
}

/** The clients of a pooler whose database is on a LockStepServer. */
export class LockStepClients {
  private readonly answers = new ByteCount();

  private constructor(
    private readonly server: LockStepServer,
    private readonly clients: RawClient[],
  ) {
    for (const { socket } of clients) {
      socket.removeAllListeners('data');
      socket.on('data', (bytes: Buffer) => this.answers.add(bytes.length));
    }
  }

  static async login(server: LockStepServer, port: number, count: number): Promise<LockStepClients> {
    const clients: RawClient[] = [];
    for (let n = 0; n < count; n++) {
      const client = await RawClient.connect({ port });
      const last = (await client.login()).at(-1);
      if (last?.type !== 'Z') throw new Error(`a login failed: ${last?.body.toString('latin1')}`);
      clients.push(client);
    }
    return new LockStepClients(server, clients);
  }

  /** One query of every client. */
  async round(gate: Gate | null = null): Promise<void> {
    const { clients, server } = this;
    const asked = server.allAsked(clients.length);
    const answered = this.answers.wait(clients.length * ANSWER.length, 'the answers at the clients');
    await gate?.freeze();
    await Promise.all(clients.map((client) => client.send(QUERY)));
    await gate?.thaw();
    await asked;
    await gate?.freeze();
    await server.answerAll();
    await gate?.thaw();
    await answered;
  }

  async end(): Promise<void> {
    await Promise.all(this.clients.map((client) => client.destroy()));
  }
}
