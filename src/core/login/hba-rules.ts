/*
 * The current HBA rules: loaded with every config (reload.ts) while auth_type is hba, evaluated at every login.
 */

import { type HbaClient, hbaEval } from '../auth/hba-eval';
import { logWarning } from '../base/log';
import { AuthType } from '../config/choices';
import { type HbaRule, isHbaReadable, loadHba, OPEN_CERT, openCertRules } from '../config/hba';
import { type IdentMaps, loadIdent } from '../config/ident';
import { cf } from '../config/settings';
import type { Settings } from '../config/settings-table';
import { isUnixAddr } from '../net/addr';
import { type ClientSocket, type PgDatabase, Replication } from '../pool/bouncer';

/** null = never loaded: no client matches a rule */
let rules: HbaRule[] | null = null;
let maps: IdentMaps | null = null;

/**
 * Reads both files, at start and on every reload. Lines that cannot be parsed are skipped, as in PgBouncer. If a file
 * cannot be opened, the previous rules stay (PgBouncer then has no rules, and rejects all clients).
 */
export function reloadHba(): void {
  if (cf.authType !== AuthType.HBA) {
    rules = null;
    return;
  }
  if (cf.authIdentFile !== null) maps = loadIdent(cf.authIdentFile) ?? maps;
  const loaded = loadHba(cf.authHbaFile, maps);
  if (loaded !== null) rules = loaded;
  else if (rules !== null) logWarning('could not load HBA file, keeping the previous rules');
  for (const { line } of openCertRules(rules ?? [], cf)) logWarning(`hba line ${line}: ${OPEN_CERT}`);
}

/** True if LDAP may decide about a login. */
export function usesLdap(): boolean {
  if (cf.authType !== AuthType.HBA) return cf.authType === AuthType.LDAP;
  return rules?.some(({ method }) => method === AuthType.LDAP) === true;
}

/**
 * Checks auth_hba_file before a reload applies it. It may be unreadable while there are previous rules.
 * @returns false after logging an error
 */
export function checkHbaFile(settings: Readonly<Settings>): boolean {
  return settings.authType !== AuthType.HBA || rules !== null || isHbaReadable(settings.authHbaFile);
}

/** The rule for this client and this user name, or null. */
export function findHbaRule(client: ClientSocket, db: PgDatabase, username: string): HbaRule | null {
  const facts: HbaClient = {
    isUnix: isUnixAddr(client.remoteAddr),
    host: client.remoteAddr.host,
    isTls: client.tls,
    // the console is a database, whatever the client asks for
    physicalReplication: client.replication === Replication.PHYSICAL && !db.admin,
    database: db.name,
    user: username,
  };
  return hbaEval(rules, facts);
}
