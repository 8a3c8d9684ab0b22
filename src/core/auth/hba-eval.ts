/*
 * Which HBA rule a client falls under: the first that fits its connection, database and user. Called at login.
 */

import { parseInet } from '../base/inet';
import { type HbaNames, type HbaRule, HbaType } from '../config/hba';

/** What of a client the rules look at. */
export interface HbaClient {
  /** over a Unix socket */
  isUnix: boolean;
  /** numeric address when it is not */
  host: string;
  isTls: boolean;
  /** replication=yes: such a connection has no database */
  physicalReplication: boolean;
  database: string;
  user: string;
}

/** @param pair the user's name for a database, the database's for a user */
function nameMatches(list: HbaNames, name: string, pair: string): boolean {
  if (list.all) return true;
  if (list.sameuser && name === pair) return true;
  return list.names.has(name);
}

/** @param address 4 or 16 bytes; an IPv4 rule never fits an IPv6 client, nor the other way round */
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

/** The rule of this client, or null: then it has no business here. The original's hba_eval(). */
export function hbaEval(rules: readonly HbaRule[] | null, client: HbaClient): HbaRule | null {
  if (rules === null) return null;
  // a zone is how the client came, not who it is
  const address = client.isUnix ? null : parseInet(client.host.replace(/%.*$/, ''));
  for (const rule of rules) {
    if (!connectionMatches(rule, client, address)) continue;
    // `all` databases are those that have a name
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
