/*
 * Decides whether the error that ended a client has a cause. All faults of a simulation are known, so an error without
 * such a cause is a fault of the pooler.
 */
import type { ErrorSeen } from './answers';
import type { SimClient } from './client';
import { SECOND } from './clock';
import { WANTS_STANDBY } from './scenario';
import type { World } from './world';

interface Reason {
  text: RegExp;
  /** true if a fault or a command explains it */
  when: (world: World, client: SimClient) => boolean;
}

/** A listen_queue_size that clients of the simulation may exceed. */
const QUEUE_SMALL = 3000;

const serversFail = (world: World): boolean => world.scenario.faults.servers;
/** A process was stopped for a while. */
const standsStill = ({ reboots, scenario }: World): boolean => reboots.wasStopped || scenario.faults.clock;
/** Logins of servers fail or take too long, and clients do not wait until one fits: see target_session_attrs. */
const isRefused = (world: World, { character }: SimClient): boolean =>
  (serversFail(world) || standsStill(world)) && !WANTS_STANDBY.has(character.database);
/** Servers of its database may stop to fit. */
const changesRoles = ({ cluster }: World, database: string): boolean =>
  WANTS_STANDBY.has(database) && cluster.changes > 0;
const databasesAreNarrow = (world: World): boolean => world.scenario.settings.max_db_connections !== 0;

/** The operator has paused pools. */
const poolsPaused = ({ operator }: World): boolean => ['PAUSE', 'KILL', 'SUSPEND'].some((word) => operator.has(word));

/** A login may wait for a server: for the first of its pool, or for a server that runs auth_query. */
const loginMayWait = (world: World): boolean =>
  world.scenario.settings.listen_mode === 'pin' ||
  standsStill(world) ||
  serversFail(world) ||
  databasesAreNarrow(world) ||
  poolsPaused(world);

/** So much time has passed since then; the janitor is never early. */
function longerThan(setting: string, since: (client: SimClient) => number) {
  return ({ clock, scenario }: World, client: SimClient): boolean => {
    const limit = Number(scenario.settings[setting]) * SECOND;
    return limit > 0 && clock.now - since(client) >= limit;
  };
}

/** The old process has waited for the end of its transaction. */
const outlastsSuspend = longerThan('suspend_timeout', (client) => client.transactionSince);

const hasWaited = (setting: string) => longerThan(setting, (client) => client.waitingSince);

const REASONS: Reason[] = [
  { text: /^(server conn crashed\?|server connection closed)$/, when: serversFail },
  { text: /^terminating connection due to administrator command$/, when: serversFail },
  // RECONNECT CLIENTS, and a shutdown that drains or times out
  {
    text: /^terminating connection due to administrator command$/,
    when: ({ operator }) => operator.has('RECONNECT') || operator.has('SHUTDOWN'),
  },
  { text: /^(sorry, too many clients already|the database system is starting up)$/, when: serversFail },
  { text: /^server login has been failing/, when: isRefused },
  { text: /^(connect failed|connect timeout|server DNS lookup failed|login failed)$/, when: isRefused },
  // its listening server has become a standby before it listened
  {
    text: /^LISTEN failed: cannot execute LISTEN during recovery$/,
    when: (world, { inbox, character }) => inbox !== null && changesRoles(world, character.database),
  },
  // other pools may use all connections that its database is allowed
  {
    text: /^client_login_timeout \(server down\)$/,
    when: loginMayWait,
  },
  // an idle session ends with its server, and so does a replication connection
  {
    text: /^database configuration changed$/,
    when: (world, { character }) =>
      (world.scenario.settings.server_fast_close === 1 || character.replication) &&
      (world.operator.has('RECONNECT') || world.operator.has('RELOAD') || changesRoles(world, character.database)),
  },
  // auth_query could not be run
  { text: /^bouncer config error$/, when: (world) => serversFail(world) || world.operator.has('KILL') },
  // its variables could not be set
  { text: /^invalid server parameter$/, when: serversFail },
  {
    // a login may wait for a server that runs auth_query
    text: /^client_login_timeout$/,
    when: loginMayWait,
  },
  { text: /^query_wait_timeout$/, when: hasWaited('query_wait_timeout') },
  { text: /^query[_ ]timeout$/, when: hasWaited('query_timeout') },
  {
    text: /^idle transaction timeout$/,
    when: longerThan('idle_transaction_timeout', (client) => client.answeredSince),
  },
  { text: /^transaction timeout$/, when: longerThan('transaction_timeout', (client) => client.transactionSince) },
  { text: /^client_idle_timeout$/, when: longerThan('client_idle_timeout', (client) => client.answeredSince) },
  { text: /^database removed$/, when: ({ operator }) => operator.has('KILL') },
  { text: /^database ".*" is disabled$/, when: ({ operator }) => operator.has('DISABLE') },
  { text: /^authentication database ".*" is disabled$/, when: ({ operator }) => operator.has('DISABLE') },
  { text: /^admin forced disconnect$/, when: ({ operator }) => operator.has('KILL_CLIENT') },
  { text: /^(pooler is|server) shutting down$/, when: ({ operator }) => operator.has('SHUTDOWN') },
  {
    text: /^connection cannot be handed over: cipher suite without AEAD$/,
    when: (world, client) =>
      world.scenario.faults.reboots &&
      client.character.tls === 'old' &&
      (!client.isInTransaction || standsStill(world) || outlastsSuspend(world, client)),
  },
  {
    text: /^LISTEN is not allowed: /,
    when: ({ scenario }, { listened }) => scenario.settings.listen_mode === 'refuse' && listened >= 0,
  },
  {
    text: /^notifications may have been lost/,
    when: ({ scenario }, client) => scenario.settings.listen_loss === 'disconnect' && client.hasLost(),
  },
  {
    text: /^listen_queue_size exceeded/,
    when: ({ scenario }, { inbox }) => inbox !== null && Number(scenario.settings.listen_queue_size) <= QUEUE_SMALL,
  },
  { text: /^suspend_timeout$/, when: ({ operator }) => operator.has('SUSPEND') },
];

/** True if the pooler may end a client's connection with this error. */
export function isJustified(world: World, client: SimClient, error: ErrorSeen): boolean {
  return REASONS.some(({ text, when }) => text.test(error.text) && when(world, client));
}
