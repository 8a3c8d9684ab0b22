// Applies the records of a config: databases, users, peers. Records that are no longer in it are removed.

import { nextOf } from '../base/list';
import type { ParsedConfig } from '../config/loader';
import {
  DATABASE_DEFAULTS,
  type DatabaseConfig,
  type PeerConfig,
  parseDatabase,
  USER_DEFAULTS,
} from '../config/records';
import { tagDatabaseDirty } from '../link/dirty';
import { forgetUnusedCommands } from '../link/password-command';
import { applyDatabase, getAutodb, setAutodb } from '../link/registry';
import type { PgDatabase } from '../pool/bouncer';
import { noteChange } from '../pool/changes';
import { addPeer, eachDatabase, peerList } from '../pool/database';
import { poolList } from '../pool/pool';
import { findOrAddGlobalUser, userList } from '../pool/user';

/** True if two connect strings of the `*` entry differ only in their hosts. */
function sameButHosts(before: string, now: string): boolean {
  const [a, b] = [before, now].map((connstr) => {
    const config = parseDatabase('*', connstr);
    return config === null ? connstr : JSON.stringify({ ...config, connstr: '', host: null });
  });
  return a === b;
}

/**
 * Re-creates the databases of a changed `*` entry, and replaces their servers.
 * @param onlyHosts only its hosts changed: servers whose host is still listed stay
 */
function reloadAutodatabases(template: DatabaseConfig, onlyHosts: boolean): void {
  eachDatabase((db) => {
    if (!db.auto) return;
    const config = parseDatabase(db.name, template.connstr);
    // an idle one becomes active again, until maintenance finds it idle
    if (config !== null) applyDatabase(config).auto = true;
    if (config === null || !onlyHosts) tagDatabaseDirty(db);
  });
}

function applyPeer({ id, host, port, poolSize }: PeerConfig): void {
  const peer = addPeer(id);
  peer.dead = false;
  peer.config = { ...DATABASE_DEFAULTS, host, port, poolSize };
}

/** The auth_user of the settings may have changed: databases that have none of their own look at it again. */
export function forgetAuthUsers(): void {
  eachDatabase((db) => {
    if (db.config.authUser === null) db.authUser = null;
  });
}

/**
 * Applies the databases, users and peers of a config that was read without errors.
 * @param kill removes a database or peer that is no longer in the config
 */
export function applyRecords(parsed: ParsedConfig, kill: (db: PgDatabase) => void): void {
  const autodb = getAutodb();
  const autodbChanged = (autodb?.connstr ?? null) !== (parsed.autodb?.connstr ?? null);
  const onlyHosts = autodb !== null && parsed.autodb !== null && sameButHosts(autodb.connstr, parsed.autodb.connstr);
  setAutodb(parsed.autodb);
  eachDatabase((db) => {
    db.dead = !db.admin && (!db.auto || parsed.autodb === null);
  });
  for (let peer = peerList.head; peer !== null; peer = nextOf(peer)) peer.dead = !peer.fromDns;

  for (const config of parsed.databases) applyDatabase(config).provisional = false;
  const named = new Set(parsed.users.map((config) => config.name));
  for (let user = userList.head; user !== null; user = nextOf(user))
    if (!named.has(user.name)) user.config = USER_DEFAULTS;
  for (const config of parsed.users) findOrAddGlobalUser(config.name).config = config;
  for (const config of parsed.peers) applyPeer(config);
  if (autodbChanged && parsed.autodb !== null) reloadAutodatabases(parsed.autodb, onlyHosts);
  forgetAuthUsers();

  // removing one database may remove another: the clients removed with it may be the other's last
  const gone: PgDatabase[] = [];
  const note = (db: PgDatabase): void => {
    if (db.dead) gone.push(db);
  };
  eachDatabase(note);
  for (let peer = peerList.head; peer !== null; peer = nextOf(peer)) note(peer);
  for (const db of gone) kill(db);
  forgetUnusedCommands(parsed.autodb?.passwordCommand ?? null);
  // their sizes may have changed
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) noteChange(pool);
}
