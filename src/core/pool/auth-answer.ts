/*
 * What auth_query says about a user, and a look-up that several logins share. The look-ups in progress are in
 * lookups.ts, the answers that are used again in login/auth-cache.ts.
 */

export interface AuthAnswer {
  /** see answerKey() in login/auth-cache.ts */
  readonly key: string;
  readonly name: string;
  readonly passwd: string;
  /** usec; when the query was sent */
  readonly askedAt: number;
}

/** The type of the clients is a parameter, because their records refer to this one. */
export class AuthLookup<Client> {
  readonly key: string;
  /** the login that runs the query */
  readonly leader: Client;
  readonly waiters = new Set<Client>();
  /** usec; when the query was sent, 0 = not yet */
  askedAt = 0;
  /** the last row that has arrived, null = none */
  answer: AuthAnswer | null = null;

  constructor(key: string, leader: Client) {
    this.key = key;
    this.leader = leader;
  }
}
