/*
 * Finds the HBA rule of a client: the first rule that matches its connection, database and user. Called at login.
 */

import { inetForms, isInNetwork } from '../base/inet';
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

/** @param addresses see inetForms() */
function connectionMatches(rule: HbaRule, client: HbaClient, addresses: readonly Uint8Array[]): boolean {
  if (client.isUnix) return rule.type === HbaType.LOCAL;
  if (rule.type === HbaType.LOCAL) return false;
  if (rule.type === HbaType.HOSTSSL && !client.isTls) return false;
  if (rule.type === HbaType.HOSTNOSSL && client.isTls) return false;
  return rule.anyAddress || isInNetwork(addresses, rule.address, rule.mask);
}

/** The rule for this client, or null: the client must be rejected. PgBouncer's hba_eval(). */
export function hbaEval(rules: readonly HbaRule[] | null, client: HbaClient): HbaRule | null {
  if (rules === null) return null;
  const addresses = client.isUnix ? [] : inetForms(client.host);
  for (const rule of rules) {
    if (!connectionMatches(rule, client, addresses)) continue;
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
