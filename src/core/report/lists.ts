/*
 * The numbers of databases, users, pools, connections and DNS names.
 */

import { dnsCounts } from '../net/dnslookup';
import { databaseList, peerList } from '../pool/database';
import { peerPoolList, poolList } from '../pool/pool';
import { loginClientList, socketCounts } from '../pool/states';
import { userCount } from '../pool/user';

interface ListCounts {
  readonly databases: number;
  readonly users: number;
  readonly peers: number;
  readonly pools: number;
  readonly peerPools: number;
  /** the highest number of connections so far minus the current one */
  readonly freeClients: number;
  readonly usedClients: number;
  readonly loginClients: number;
  readonly freeServers: number;
  readonly usedServers: number;
  readonly dnsNames: number;
  readonly dnsZones: number;
  readonly dnsQueries: number;
  readonly dnsPending: number;
}

export function listCounts(): ListCounts {
  const { names, zones, queries, pending } = dnsCounts();
  const { clients, servers, clientsPeak, serversPeak } = socketCounts;
  return {
    databases: databaseList.count,
    users: userCount(),
    peers: peerList.count,
    pools: poolList.count,
    peerPools: peerPoolList.count,
    freeClients: clientsPeak - clients,
    usedClients: clients,
    loginClients: loginClientList.count,
    freeServers: serversPeak - servers,
    usedServers: servers,
    dnsNames: names,
    dnsZones: zones,
    dnsQueries: queries,
    dnsPending: pending,
  };
}
