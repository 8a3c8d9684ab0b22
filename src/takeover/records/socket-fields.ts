/*
 * Flags and numbers of a socket in a handover record: for each name, how the value is read from a socket and restored.
 * The names are those of format 1, which has one flat list for clients and servers.
 */

import type { WallTime } from '../../core/base/time';
import type { AnySocket, ClientSocket, PgSocket, ServerSocket } from '../../core/pool/bouncer';
import { ClientLogin } from '../../core/pool/login-state';
import { LoginPhase } from '../../core/pool/phases';
import { consoleSession, hasStarted, isServerSocket } from '../../core/pool/socket';
import { receivedTime, sentTime } from '../clock';

interface Flag {
  readonly name: string;
  readonly get: (sk: AnySocket) => boolean;
  /** called if the flag is set; absent where another module restores the state behind it */
  readonly set?: (sk: AnySocket) => void;
}

type BooleanKey<T> = { [K in keyof T]: T[K] extends boolean ? K : never }[keyof T];

function flag(name: BooleanKey<PgSocket>): Flag {
  return {
    name,
    get: (sk) => sk[name],
    set: (sk) => {
      sk[name] = true;
    },
  };
}

function serverFlag(name: BooleanKey<ServerSocket>): Flag {
  return {
    name,
    get: (sk) => isServerSocket(sk) && sk[name],
    set: (sk) => {
      if (isServerSocket(sk)) sk[name] = true;
    },
  };
}

function clientFlag(name: string, get: (client: ClientSocket) => boolean, set?: (client: ClientSocket) => void): Flag {
  const whole: Flag = { name, get: (sk) => !isServerSocket(sk) && get(sk) };
  if (set === undefined) return whole;
  return { ...whole, set: (sk) => (isServerSocket(sk) ? undefined : set(sk)) };
}

/** A flag that stands for a phase of the login. If several are set, the highest phase counts. */
function phaseFlag(name: string, phase: LoginPhase): Flag {
  return clientFlag(
    name,
    (client) => client.login?.phase === phase,
    (client) => setPhase(client, phase),
  );
}

function setPhase(client: ClientSocket, phase: LoginPhase): void {
  if (client.login !== null) client.login.phase = Math.max(client.login.phase, phase);
}

/** In the order of their bits. */
const flags: readonly Flag[] = [
  flag('pktSkip'),
  flag('reading'),
  flag('blocked'),
  clientFlag('contributesDbClientCount', (client) => client.countedDb !== null),
  clientFlag('userConnectionCounted', (client) => client.countedUser !== null),
  serverFlag('ready'),
  serverFlag('idleTx'),
  serverFlag('closeNeeded'),
  serverFlag('settingVars'),
  serverFlag('resetting'),
  serverFlag('copyMode'),
  serverFlag('queryFailed'),
  phaseFlag('waitForWelcome', LoginPhase.WELCOME),
  clientFlag('startupMessageReceived', hasStarted, (client) => setPhase(client, LoginPhase.CHALLENGED)),
  clientFlag(
    'welcomeSent',
    (client) => client.login === null,
    (client) => {
      client.login = null;
    },
  ),
  clientFlag(
    'protocolNegotiated',
    (client) => client.login?.protocolNegotiated === true,
    (client) => {
      if (client.login !== null) client.login.protocolNegotiated = true;
    },
  ),
  phaseFlag('waitForUserConn', LoginPhase.AUTH_QUERY_SERVER),
  phaseFlag('waitForUser', LoginPhase.AUTH_QUERY_RESULT),
  clientFlag(
    'waitForAuth',
    (client) => isExternal(client.login?.phase),
    (client) => setPhase(client, LoginPhase.EXTERNAL_AUTH),
  ),
  clientFlag(
    'authPassed',
    (client) => client.login?.phase === LoginPhase.EXTERNAL_PASSED,
    (client) => {
      // versions before 0.2 leave this flag set after the login
      if (client.login?.phase === LoginPhase.EXTERNAL_AUTH) client.login.phase = LoginPhase.EXTERNAL_PASSED;
    },
  ),
  clientFlag(
    'sentWaitNotification',
    (client) => client.waitNotified,
    (client) => {
      client.waitNotified = true;
    },
  ),
  clientFlag(
    'adminUser',
    (client) => client.console?.admin === true,
    (client) => {
      consoleSession(client).admin = true;
    },
  ),
  clientFlag(
    'ownUser',
    (client) => client.console?.owner === true,
    (client) => {
      consoleSession(client).owner = true;
    },
  ),
  clientFlag(
    'waitForResponse',
    (client) => (client.console?.waitsFor ?? null) !== null,
    (client) => {
      // an earlier version says no more than that
      consoleSession(client).waitsFor = { tag: '', db: null };
    },
  ),
  clientFlag(
    'protocol32',
    (client) => client.protocol32,
    (client) => {
      client.protocol32 = true;
    },
  ),
  serverFlag('failedTx'),
  serverFlag('recoding'),
  serverFlag('sessionClient'),
];

function isExternal(phase: LoginPhase | undefined): boolean {
  return phase === LoginPhase.EXTERNAL_AUTH || phase === LoginPhase.EXTERNAL_PASSED;
}

export const flagNames: readonly string[] = flags.map(({ name }) => name);

const READING = 1 << flagNames.indexOf('reading');
const flagByName = new Map(flags.map((each) => [each.name, each]));

/**
 * True if the new process has to handle a packet of the client again: it waits for the server's answers to earlier
 * requests, or for the auth_query of another login.
 */
function isHandledAgain(client: ClientSocket): boolean {
  return client.link?.holding === true || client.login?.phase === LoginPhase.AUTH_QUERY_SHARED;
}

/** The flags of a socket as bits, in the order of flagNames. */
export function flagBits(sk: AnySocket): number {
  let bits = 0;
  for (let i = 0; i < flags.length; i++) if ((flags[i] as Flag).get(sk)) bits |= 1 << i;
  if (!isServerSocket(sk) && isHandledAgain(sk)) bits |= READING;
  return bits;
}

/**
 * Restores the flags of a socket.
 * @param names the name of each bit, from the first record
 */
export function setFlags(sk: AnySocket, names: readonly string[], bits: number): void {
  sk.pktSkip = sk.reading = sk.blocked = false;
  if (!isServerSocket(sk)) {
    sk.login = new ClientLogin<ClientSocket>();
    sk.protocol32 = sk.waitNotified = false;
  }
  for (let i = 0; i < names.length; i++) if ((bits & (1 << i)) !== 0) flagByName.get(names[i] as string)?.set?.(sk);
}

/** @returns whether a flag is among the bits */
export function hasFlag(name: string, names: readonly string[], bits: number): boolean {
  const at = names.indexOf(name);
  return at >= 0 && (bits & (1 << at)) !== 0;
}

interface NumberField {
  readonly name: string;
  readonly get: (sk: AnySocket) => number | WallTime;
  readonly set: (sk: AnySocket, value: number | WallTime) => void;
}

/** Times are handed over as wall time: see ../clock.ts. */
function time(name: 'connectTime' | 'requestTime'): NumberField {
  return {
    name,
    get: (sk) => sentTime(sk[name]),
    set: (sk, value) => {
      sk[name] = receivedTime(value as WallTime);
    },
  };
}

function clientTime(name: 'queryStart' | 'xactStart' | 'waitStart'): NumberField {
  return {
    name,
    get: (sk) => sentTime(isServerSocket(sk) ? 0 : sk[name]),
    set: (sk, value) => {
      if (!isServerSocket(sk)) sk[name] = receivedTime(value as WallTime);
    },
  };
}

const numbers: readonly NumberField[] = [
  {
    name: 'pktRemain',
    get: (sk) => sk.pktRemain,
    set: (sk, value) => {
      sk.pktRemain = value as number;
    },
  },
  {
    name: 'clientAuthType',
    get: (sk) => (isServerSocket(sk) ? -1 : (sk.login?.method ?? -1)),
    set: (sk, value) => {
      if (!isServerSocket(sk) && sk.login !== null) sk.login.method = value as number;
    },
  },
  {
    name: 'replication',
    get: (sk) => sk.replication,
    set: (sk, value) => {
      sk.replication = value as number;
    },
  },
  time('connectTime'),
  time('requestTime'),
  clientTime('queryStart'),
  clientTime('xactStart'),
  clientTime('waitStart'),
  {
    name: 'dropping',
    get: (sk) => (isServerSocket(sk) ? 0 : sk.dropping),
    set: (sk, value) => {
      if (!isServerSocket(sk)) sk.dropping = value as number;
    },
  },
];

export const numberNames: readonly string[] = numbers.map(({ name }) => name);

const numberByName = new Map(numbers.map((each) => [each.name, each]));

/** The numbers of a socket, in the order of numberNames. */
export function numbersOf(sk: AnySocket): (number | WallTime)[] {
  return numbers.map(({ get }) => get(sk));
}

/** Restores the numbers of a socket, after its flags. @param names as for setFlags() */
export function setNumbers(sk: AnySocket, names: readonly string[], values: readonly (number | WallTime)[]): void {
  for (let i = 0; i < names.length; i++) numberByName.get(names[i] as string)?.set(sk, values[i] ?? 0);
}
