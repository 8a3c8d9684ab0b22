/*
 * The data of connections that are logging in. `Client` is ClientSocket, whose file needs this one.
 */

import type { ScramState } from '../auth/scram';
import type { PktBuf } from '../wire/pktbuf';
import type { AuthAnswer, AuthLookup } from './auth-answer';
import { LoginPhase, ProtocolTry, ServerLoginPhase } from './phases';

/** The data of a client that is needed only until its login is complete. */
export class ClientLogin<Client> {
  phase: LoginPhase = LoginPhase.STARTUP;
  /** the connection has to begin with a header of the PROXY protocol, which has not arrived yet */
  proxyHeaderDue = false;
  /** AuthType, -1 = not decided yet */
  method = -1;
  /** NegotiateProtocolVersion has been sent */
  protocolNegotiated = false;
  /** the random bytes of an md5 challenge */
  salt: Buffer | null = null;
  scram: ScramState | null = null;
  /** hash of the certificate that the client has seen, see net/tls.ts; null = not computed, or none */
  certHash: Buffer | null = null;
  /** how to query the LDAP server: auth_ldap_options, or the options of the HBA rule */
  ldapOptions = '';
  /** of a replication client: the welcome message from its own server */
  welcome: Uint8Array | null = null;
  /** the look-up that it runs, or waits for */
  lookup: AuthLookup<Client> | null = null;
  /** the answer of auth_query that it uses, to be kept if the login succeeds; null = not to be kept */
  answer: AuthAnswer | null = null;
  /** the name that auth_query was asked about, if its secret is an earlier answer; '' = the secret is fresh */
  cachedFor = '';
}

/** The data of a server connection that is needed only until its login is complete. */
export class ServerLogin<Client> {
  phase: ServerLoginPhase = ServerLoginPhase.STARTUP;
  /** PgPool.attempt when the connection was launched */
  attempt = 0;
  /** id of a name resolution in progress, -1 = none */
  dnsToken = -1;
  scram: ScramState | null = null;
  /** the connection was opened for this cancel request */
  cancelRequest: Client | null = null;
  /** the server has proved in a SCRAM exchange that it is the end of this TLS connection */
  channelBound = false;
  /** what is not known yet about the server's protocol version */
  protocolTry: ProtocolTry = ProtocolTry.NONE;
  /** of a replication connection: the welcome message of its client; see pool/welcome.ts */
  welcome: PktBuf | null = null;
  /** usec; since when the connection is open */
  connectedAt = 0;
}
