/*
 * The login to a simulated server: requests for TLS and for a cancel, the startup packet, the password.
 */
import type { Line } from './actor';
import type { PgServer } from './postgres';
import type { SessionVars } from './session-vars';
import {
  CANCEL_REQUEST,
  GSSENC_REQUEST,
  int32,
  md5Answer,
  type Packets,
  packet,
  readCstring,
  readInt32,
  SSL_REQUEST,
} from './wire';

/** What follows a packet of the login. */
type Next =
  | 'another packet'
  /** the session never answers */
  | 'silence'
  | 'in'
  /** with the error, or without one */
  | { end: string | null };

export class Login {
  user = '';
  database = '';
  replication = false;
  private salt: string | null = null;

  /** @param name of the session */
  constructor(
    private readonly name: string,
    private readonly server: PgServer,
    private readonly line: Line,
    private readonly packets: Packets,
    private readonly vars: SessionVars,
  ) {}

  /** The pool that the session belongs to. */
  get pool(): string {
    return `${this.database}/${this.user}`;
  }

  take(body: string): Next {
    if (this.salt !== null) return this.password(body, this.salt);
    const code = readInt32(body, 0);
    if (code === SSL_REQUEST && this.server.tls) {
      this.line.acceptTls();
    } else if (code === SSL_REQUEST || code === GSSENC_REQUEST) {
      this.line.send('N');
    } else if (code === CANCEL_REQUEST) {
      this.server.cancel(body.slice(4));
      return { end: null };
    } else {
      return this.begin(body);
    }
    return 'another packet';
  }

  private begin(body: string): Next {
    const { server } = this;
    const parts = body.slice(4).split('\0');
    for (let i = 0; i + 1 < parts.length; i += 2) {
      const [name, value] = [parts[i] as string, parts[i + 1] as string];
      if (name === 'user') this.user = value;
      else if (name === 'database') this.database = value;
      else if (name === 'replication') this.replication = true;
      else this.vars.begin(name, value);
    }
    const refusal = server.refusal();
    if (refusal !== null) return { end: refusal };
    this.packets.untyped = false;
    if (server.hangs()) return 'silence';
    if (server.auth !== 'md5') return 'in';
    this.salt = server.world.random.text(4);
    this.line.send(packet('R', int32(5) + this.salt));
    return 'another packet';
  }

  private password(body: string, salt: string): Next {
    const { world } = this.server;
    const expected = md5Answer(this.user, world.passwordOf(this.user), salt);
    if (readCstring(body, 0) !== expected) world.fail(`the pooler gave ${this.name} a wrong password for ${this.user}`);
    return 'in';
  }
}
