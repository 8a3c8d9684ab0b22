/*
 * Password authentication: requests a client's password and checks the response (plain, md5, SCRAM-SHA-256).
 */

import { checkMd5Password, checkPlainPassword } from '../auth/passwd';
import { SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramState } from '../auth/scram';
import {
  buildServerFinalMessage,
  buildServerFirstMessage,
  type ChannelBinding,
  readClientFinalMessage,
  readClientFirstMessage,
  renewKeys,
  SCRAM_MD5_SECRET,
  saveScramKeys,
  verifyClientProof,
  verifyFinalNonce,
} from '../auth/scram-server';
import { PasswordType, passwordType } from '../auth/secret';
import { slogDebug, slogError, slogNoise, wantDebug } from '../base/log';
import { takeRandom } from '../base/random';
import { AuthType } from '../config/choices';
import { cf } from '../config/settings';
import { disconnectClient } from '../link/objects';
import { sendPacket } from '../net/sbuf';
import { seenCertHash } from '../net/tls';
import type { ClientSocket, PgCredentials, PgDatabase } from '../pool/bouncer';
import type { ClientLogin } from '../pool/login-state';
import { LoginPhase } from '../pool/phases';
import { admitClient } from '../pool/provisional';
import { loginOf } from '../pool/socket';
import {
  writeAuthCleartext,
  writeAuthMd5,
  writeAuthSASL,
  writeAuthSASLContinue,
  writeAuthSASLFinal,
} from '../wire/messages';
import { pktbufTemp } from '../wire/pktbuf';
import { PktReader } from '../wire/reader';
import { Verdict } from '../wire/verdict';
import { refuse } from './admit';
import { askAgain } from './auth-query';
import { externalAuthBegin } from './external-auth';
import { ldapQueue } from './ldapauth';
import { pamQueue } from './pam';
import { finishClientLogin } from './welcome';

const MD5_SALT_LEN = 4;

/** For the log and, unless it used SCRAM, for the client. */
const WRONG_PASSWORD = 'password authentication failed';

/** Requests the password by the client's method. @returns false if the client was disconnected */
export function sendClientAuthReq(client: ClientSocket): boolean {
  const buf = pktbufTemp();
  const login = loginOf(client);
  switch (login.method) {
    case AuthType.MD5:
      login.salt = takeRandom(MD5_SALT_LEN);
      writeAuthMd5(buf, login.salt);
      break;
    case AuthType.PLAIN:
    case AuthType.LDAP:
    case AuthType.PAM:
      writeAuthCleartext(buf);
      break;
    default:
      writeAuthSASL(buf, seenCertHash(client) === null ? [SCRAM_SHA_256] : [SCRAM_SHA_256_PLUS, SCRAM_SHA_256]);
  }
  if (sendPacket(client, buf)) {
    slogNoise(client, 'Auth request sent successfully');
    return true;
  }
  disconnectClient(client, false, 'failed to send auth req');
  return false;
}

function checkClientPasswd(client: ClientSocket, passwd: string): boolean {
  const user = client.loginUser as PgCredentials;
  if (user.mockAuth) return false;
  const { method, salt } = loginOf(client);
  if (method === AuthType.PLAIN) return checkPlainPassword(user.name, user.passwd, passwd);
  if (salt === null) return false;
  return checkMd5Password(user.name, user.passwd, salt, passwd);
}

/** Handles the response to the first SASL request: mechanism and client-first-message. @returns null, or what to log */
function scramFirst(client: ClientSocket, message: string, binding: ChannelBinding): string | null {
  const user = client.loginUser as PgCredentials;
  const state = new ScramState();
  loginOf(client).scram = state;
  if (wantDebug()) slogDebug(client, `SCRAM client-first-message = "${message}"`);
  const error = readClientFirstMessage(state, message, binding);
  if (error !== null) return error;
  if (!user.mockAuth && passwordType(user.passwd) === PasswordType.MD5) return SCRAM_MD5_SECRET;
  const answer = buildServerFirstMessage(state, user, cf.scramIterations);
  if (answer === null) return SCRAM_MD5_SECRET;
  if (wantDebug()) slogDebug(client, `SCRAM server-first-message = "${answer}"`);
  const buf = pktbufTemp();
  writeAuthSASLContinue(buf, answer);
  return sendPacket(client, buf) ? null : 'failed to send auth req';
}

function scramFinal(client: ClientSocket, state: ScramState, message: string): string | null {
  if (wantDebug()) slogDebug(client, `SCRAM client-final-message = "${message}"`);
  const error = readClientFinalMessage(state, message);
  if (error !== null) return error;
  if (!verifyFinalNonce(state)) return 'invalid SCRAM response (nonce does not match)';
  if (!verifyClientProof(state)) return WRONG_PASSWORD;
  const buf = pktbufTemp();
  writeAuthSASLFinal(buf, buildServerFinalMessage(state));
  return sendPacket(client, buf) ? null : 'failed to send auth req';
}

/** True if the login failed because of its secret, and the secret may have changed since auth_query was asked. */
function mayBeOutdated(client: ClientSocket, error: string): boolean {
  return loginOf(client).cachedFor !== '' && (error === WRONG_PASSWORD || error === SCRAM_MD5_SECRET);
}

function saslPacket(client: ClientSocket, reader: PktReader): Verdict {
  const login = loginOf(client);
  const state = login.scram;
  let error: string | null;
  if (state === null) {
    const mechanism = reader.str();
    if (mechanism === null) return refuse(client, 'SASL authentication failed');
    if (wantDebug()) slogDebug(client, `C: selected SASL mechanism: ${mechanism}`);
    const certHash = seenCertHash(client);
    const chosen = mechanism === SCRAM_SHA_256_PLUS && certHash !== null;
    if (!chosen && mechanism !== SCRAM_SHA_256) {
      return refuse(client, 'client selected an invalid SASL authentication mechanism');
    }
    const message = reader.chars(reader.u32());
    if (message === null || reader.fail) return refuse(client, 'SASL authentication failed');
    error = scramFirst(client, message, { certHash, chosen });
  } else {
    error = scramFinal(client, state, reader.rest());
  }
  if (error !== null) {
    if (mayBeOutdated(client, error)) {
      login.scram = state;
      return askAgain(client);
    }
    slogError(client, error);
    return refuse(client, 'SASL authentication failed');
  }
  if (state === null) return Verdict.CONSUMED;

  // the keys of a stored secret also work on servers where the user has the same secret; a forced user's own keys stay
  if (!(client.db as PgDatabase).fake) {
    const opener = admitClient(client).user as PgCredentials;
    if (opener.passwd === (client.loginUser as PgCredentials).passwd) saveScramKeys(state, opener);
  }
  login.scram = null;
  return finishClientLogin(client);
}

/** auth_query has answered again: the packet is checked against that. */
function renewSecret(client: ClientSocket, login: ClientLogin<ClientSocket>): void {
  login.cachedFor = '';
  login.phase = LoginPhase.CHALLENGED;
  if (login.scram !== null) renewKeys(login.scram, client.loginUser as PgCredentials);
}

/**
 * Handles a complete PasswordMessage, SASLInitialResponse or SASLResponse.
 * @param off start of the packet's body, which ends at `end`
 */
export function handlePasswordPacket(client: ClientSocket, buf: Buffer, off: number, end: number): Verdict {
  const login = loginOf(client);
  const { method } = login;
  if (login.phase < LoginPhase.CHALLENGED) {
    if (login.cachedFor === '') return refuse(client, 'client password pkt before startup packet');
    if (login.phase !== LoginPhase.AUTH_QUERY_RESULT) return askAgain(client);
    renewSecret(client, login);
  }
  const reader = new PktReader(buf, off, end);
  if (method === AuthType.SCRAM_SHA_256) return saslPacket(client, reader);
  const passwd = reader.str();
  if (passwd === null) return refuse(client, 'bad packet');
  if (passwd === '') return refuse(client, 'empty password returned by client');
  if (method === AuthType.LDAP) return externalAuthBegin(ldapQueue, client, passwd);
  if (method === AuthType.PAM) return externalAuthBegin(pamQueue, client, passwd);
  if (!checkClientPasswd(client, passwd)) {
    return login.cachedFor === '' ? refuse(client, WRONG_PASSWORD) : askAgain(client);
  }
  return finishClientLogin(client);
}
