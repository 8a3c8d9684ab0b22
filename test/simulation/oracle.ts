/*
 * Whether an end that a client met has a reason. What goes wrong in a simulation is known, so an error without such a cause is a fault of
 * the pooler.
 */
import type { ErrorSeen } from './answers';
import type { SimClient } from './client';
import { SECOND } from './clock';
import type { World } from './world';

interface Reason {
  text: RegExp;
  /** true when something happened that explains it */
  when: (world: World, client: SimClient) => boolean;
}

const serversFail = (world: World): boolean => world.scenario.faults.servers;

const databasesAreNarrow = (world: World): boolean => world.scenario.settings.max_db_connections !== 0;

/** the operator has paused pools */
const poolsPaused = ({ operator }: World): boolean => ['PAUSE', 'KILL', 'SUSPEND'].some((word) => operator.has(word));
/** since its request, or its login, began */
const hasWaited = ({ clock, scenario }: World, client: SimClient): boolean =>
  clock.now - client.waitingSince >= Number(scenario.settings.query_wait_timeout) * SECOND;
const standsStill = (world: World): boolean => world.reboots.wasStopped;

const REASONS: Reason[] = [
  { text: /^(server conn crashed\?|server connection closed)$/, when: serversFail },
  { text: /^terminating connection due to administrator command$/, when: serversFail },
  { text: /^(sorry, too many clients already|the database system is starting up)$/, when: serversFail },
  { text: /^server login has been failing/, when: serversFail },
  { text: /^(connect failed|connect timeout|server DNS lookup failed|login failed)$/, when: serversFail },
  // other pools of its database may use all that it is allowed
  {
    text: /^client_login_timeout \(server down\)$/,
    when: (world) => serversFail(world) || databasesAreNarrow(world) || poolsPaused(world),
  },
  // a session of which nothing is under way ends with its server
  {
    text: /^database configuration changed$/,
    when: ({ operator, scenario }) =>
      scenario.settings.server_fast_close === 1 && (operator.has('RECONNECT') || operator.has('RELOAD')),
  },
  // auth_query could not be run
  { text: /^bouncer config error$/, when: (world) => serversFail(world) || world.operator.has('KILL') },
  // its variables could not be set
  { text: /^invalid server parameter$/, when: serversFail },
  {
    // a login may wait for a server that runs auth_query
    text: /^client_login_timeout$/,
    when: (world) => standsStill(world) || serversFail(world) || databasesAreNarrow(world) || poolsPaused(world),
  },
  { text: /^query_wait_timeout$/, when: hasWaited },
  { text: /^database removed$/, when: ({ operator }) => operator.has('KILL') },
  { text: /^database ".*" is disabled$/, when: ({ operator }) => operator.has('DISABLE') },
  { text: /^authentication database ".*" is disabled$/, when: ({ operator }) => operator.has('DISABLE') },
  { text: /^admin forced disconnect$/, when: ({ operator }) => operator.has('KILL_CLIENT') },
  { text: /^suspend_timeout$/, when: ({ operator }) => operator.has('SUSPEND') },
];

/** True when the pooler may end a client's connection with this error. */
export function isJustified(world: World, client: SimClient, error: ErrorSeen): boolean {
  return REASONS.some(({ text, when }) => text.test(error.text) && when(world, client));
}
