/*
 * LISTEN on the simulated servers: which session listens for which client. With listen_mode = pin, a client that listens
 * has a session for itself; with refuse, and with dirty_session = reset, no other client meets its LISTEN.
 */
import type { Session } from './session';
import { cstring, int32, packet } from './wire';
import type { World } from './world';

/** The channels of all sessions. */
export class Channels {
  /** by the name of the client; a client that has left may still be there */
  private readonly ofClient = new Map<string, Session>();
  private readonly listeners = new Map<Session, { client: string; channels: Set<string> }>();

  constructor(private readonly world: World) {}

  listen(session: Session, client: string, channel: string): void {
    const known = this.listeners.get(session);
    const channels = known?.client === client ? known.channels : new Set<string>();
    this.listeners.set(session, { client, channels: channels.add(channel) });
    this.ofClient.set(client, session);
  }

  /** UNLISTEN *, DISCARD ALL, or the end of the session. */
  forget(session: Session): void {
    const known = this.listeners.get(session);
    if (known === undefined) return;
    this.listeners.delete(session);
    if (this.ofClient.get(known.client) === session) this.ofClient.delete(known.client);
  }

  /** @param server the name of the server */
  notify(server: string, channel: string): void {
    for (const [session, { channels }] of this.listeners)
      if (session.serverName === server && channels.has(channel))
        session.notify(packet('A', int32(1) + cstring(channel) + cstring('')));
  }

  /** A session is to run a query of a client. @returns what is wrong with that, or null */
  fault(session: Session, client: string): string | null {
    const { listen_mode, dirty_session } = this.world.scenario.settings;
    const other = this.listeners.get(session)?.client ?? client;
    if (other !== client && (listen_mode !== 'ignore' || dirty_session === 'reset')) return `on which ${other} listens`;
    const own = this.ofClient.get(client) ?? session;
    if (own !== session && listen_mode === 'pin') return `of a client that listens on ${own.name}`;
    return null;
  }
}
