/*
 * Finds the HBA rule of a client: the first rule that matches its connection, database and user. Called at login.
 */

import { parseInet } from '../base/inet';
import { type HbaNames, type HbaRule, HbaType } from '../config/hba';

/** The properties of a client that rules are matched against. */
export interface HbaClient {
  /** over a Unix socket */
  isUnix: boolean;
  /** numeric address if not */
  host: string;
  isTls: boolean;
  /** replication=yes: such a connection has no database */
  physicalReplication: boolean;
  database: string;
  user: string;
}

/** @param pair the user's name when matching a database, the database's name when matching a user */
function nameMatches(list: HbaNames, name: string, pair: string): boolean {
  if (list.all) return true;
  if (list.sameuser && name === pair) return true;
  return list.names.has(name);
}

/** @param address 4 or 16 bytes; an IPv4 rule never matches an IPv6 client, nor vice versa */
function addressMatches(rule: HbaRule, address: Uint8Array | null): boolean {
  if (rule.anyAddress) return true;
  if (address === null || address.length !== rule.address.length) return false;
  for (let i = 0; i < address.length; i++) {
    if (((address[i] as number) & (rule.mask[i] as number)) !== rule.address[i]) return false;
  }
  return true;
}

function connectionMatches(rule: HbaRule, client: HbaClient, address: Uint8Array | null): boolean {
  if (client.isUnix) return rule.type === HbaType.LOCAL;
  if (rule.type === HbaType.LOCAL) return false;
  if (rule.type === HbaType.HOSTSSL && !client.isTls) return false;
  if (rule.type === HbaType.HOSTNOSSL && client.isTls) return false;
  return addressMatches(rule, address);
}

/** The rule for this client, or null: the client must be rejected. PgBouncer's hba_eval(). */
export function hbaEval(rules: readonly HbaRule[] | null, client: HbaClient): HbaRule | null {
  if (rules === null) return null;
  // the zone names the local interface, and is not part of the client's address
  const address = client.isUnix ? null : parseInet(client.host.replace(/%.*$/, ''));
  for (const rule of rules) {
    if (!connectionMatches(rule, client, address)) continue;
    // `all` does not match physical replication, which has no database
    if (
      client.physicalReplication
        ? !rule.databases.replication
        : !nameMatches(rule.databases, client.database, client.user)
    ) {
      continue;
    }
    if (nameMatches(rule.users, client.user, client.database)) return rule;
  }
  return null;
}
