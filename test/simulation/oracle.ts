/*
 * Whether an end that a client met has a reason. What goes wrong in a simulation is known, so an error without such a cause is a fault of
 * the pooler.
 */
import type { ErrorSeen } from './answers';
import type { SimClient } from './client';
import type { World } from './world';

interface Reason {
  text: RegExp;
  /** true when something happened that explains it */
  when: (world: World, client: SimClient) => boolean;
}

const serversFail = (world: World): boolean => world.scenario.faults.servers;
const operatorActs = (world: World): boolean => world.scenario.faults.console;

const databasesAreNarrow = (world: World): boolean => world.scenario.settings.max_db_connections !== 0;

const standsStill = (world: World): boolean => world.reboots.wasStopped;

const REASONS: Reason[] = [
  { text: /^(server conn crashed\?|server connection closed)$/, when: serversFail },
  { text: /^terminating connection due to administrator command$/, when: serversFail },
  { text: /^(sorry, too many clients already|the database system is starting up)$/, when: serversFail },
  { text: /^server login has been failing/, when: serversFail },
  { text: /^(connect failed|connect timeout|server DNS lookup failed|login failed)$/, when: serversFail },
  // other pools of its database may use all that it is allowed
  { text: /^client_login_timeout \(server down\)$/, when: (world) => serversFail(world) || databasesAreNarrow(world) },
  // auth_query could not be run
  { text: /^bouncer config error$/, when: serversFail },
  // its variables could not be set
  { text: /^invalid server parameter$/, when: serversFail },
  { text: /^client_login_timeout$/, when: standsStill },
  { text: /^query_wait_timeout$/, when: (world) => serversFail(world) || operatorActs(world) },
  { text: /^database (removed|".*" is disabled|configuration changed)/, when: operatorActs },
  { text: /^(suspend_timeout|pooler is shutting down|server shutting down)/, when: operatorActs },
];

/** True when the pooler may end a client's connection with this error. */
export function isJustified(world: World, client: SimClient, error: ErrorSeen): boolean {
  return REASONS.some(({ text, when }) => text.test(error.text) && when(world, client));
}
