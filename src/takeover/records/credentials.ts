/*
 * References to credentials in the records of pools and sockets.
 */

import { AuthType } from '../../core/config/choices';
import { cf } from '../../core/config/settings';
import { inheritPassword } from '../../core/link/password-command';
import { PgCredentials, type PgDatabase } from '../../core/pool/bouncer';
import { addDynamicCredentials } from '../../core/pool/database';
import { addPamCredentials, findGlobalUser, findOrAddLoginUser } from '../../core/pool/user';
import type { Frame } from './frame';
import { globalCredentials } from './user';

/**
 * The origin of credentials: auth_file, forced by the database, auth_query, auth_query for a login in progress, PAM, an
 * unknown user, or left over from a RELOAD.
 */
export interface CredentialsRef {
  kind: 'global' | 'forced' | 'dynamic' | 'provisional' | 'pam' | 'mock' | 'own';
  name: string;
  db: string | null;
  /** only if no other record contains it */
  passwd: string | null;
}

/** @param db the database for which the credentials were found or forced, or null */
export function credentialsRef(user: PgCredentials, db: PgDatabase | null): CredentialsRef {
  const { name } = user;
  if (user.mockAuth) return { kind: 'mock', name, db: null, passwd: null };
  if (user.globalUser?.credentials === user) return { kind: 'global', name, db: null, passwd: null };
  if (db !== null && db.dynamicUsers.get(name) === user) return { kind: 'dynamic', name, db: db.name, passwd: null };
  if (db !== null && db.forcedUser === user) return { kind: 'forced', name, db: db.name, passwd: user.passwd };
  if (user.provisional) return { kind: 'provisional', name, db: db?.name ?? null, passwd: user.passwd };
  const kind = cf.authType === AuthType.PAM ? 'pam' : 'own';
  return { kind, name, db: db?.name ?? null, passwd: user.passwd };
}

/** The credentials that `ref` names; credentials missing from this config are created. */
export function readCredentials(ref: CredentialsRef, db: PgDatabase | null, frame: Frame): PgCredentials {
  const { kind, name } = ref;
  if (kind === 'mock') {
    const mock = new PgCredentials(name, findGlobalUser(name));
    mock.mockAuth = true;
    return mock;
  }
  if (kind === 'global') return globalCredentials(name, frame.unknownUsers);
  if (kind === 'pam') return addPamCredentials(name, ref.passwd);
  if (kind === 'dynamic' && db !== null) return db.dynamicUsers.get(name) ?? addDynamicCredentials(db, name, '');
  if (kind === 'forced' && db !== null && db.forcedUser !== null) {
    // this config may name another user: the clients belong to its pool, as after RELOAD
    if (db.forcedUser.name === name) inheritPassword(db, ref.passwd ?? '');
    return db.forcedUser;
  }
  if (kind === 'provisional') return provisionalCredentials(name, ref.passwd ?? '');
  const key = `${ref.db ?? ''}\0${name}`;
  let own = frame.ownCredentials.get(key);
  if (own === undefined) {
    own = new PgCredentials(name, findOrAddLoginUser(name));
    own.passwd = ref.passwd ?? '';
    frame.ownCredentials.set(key, own);
  }
  return own;
}

/** The secret that auth_query has found for a login: if the login succeeds, the database keeps it. */
function provisionalCredentials(name: string, passwd: string): PgCredentials {
  const credentials = new PgCredentials(name, findOrAddLoginUser(name));
  credentials.passwd = passwd;
  credentials.dynamicPasswd = credentials.provisional = true;
  return credentials;
}
