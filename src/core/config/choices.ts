/*
 * The settings that have a choice of values: their values as enums, and their texts.
 */

import type { Lookup } from './values';

/**
 * auth_type, including the methods that only an HBA file can name. Every method from TRUST up, except PAM, uses
 * auth_file.
 */
export const enum AuthType {
  ANY = 0,
  TRUST = 1,
  PLAIN = 2,
  MD5 = 3,
  CERT = 4,
  HBA = 5,
  LDAP = 6,
  PAM = 7,
  SCRAM_SHA_256 = 8,
  PEER = 9,
  REJECT = 10,
}

export const enum PoolMode {
  SESSION = 0,
  TX = 1,
  STMT = 2,
  /** not set for this database or user: the next wider setting applies */
  INHERIT = 3,
}

/** Values of dirty_session. */
export const enum DirtySession {
  IGNORE,
  LOG,
  RESET,
  REFUSE,
  /** not set for this database or user: the next wider setting applies */
  INHERIT,
}

/** Values of listen_mode. */
export const enum ListenMode {
  IGNORE,
  REFUSE,
  PIN,
  SHARE,
  /** not set for this database or user: the next wider setting applies */
  INHERIT,
}

/** Values of listen_loss. */
export const enum ListenLoss {
  DISCONNECT,
  NOTICE,
}

export const enum SslMode {
  DISABLED = 0,
  ALLOW = 1,
  PREFER = 2,
  REQUIRE = 3,
  VERIFY_CA = 4,
  VERIFY_FULL = 5,
}

/** Values of sigterm_shutdown. */
export const enum SigtermShutdown {
  WAIT_FOR_CLIENTS,
  WAIT_FOR_SERVERS,
  WAIT_FOR_TRANSACTIONS,
}

export const enum LoadBalanceHosts {
  DISABLE = 0,
  ROUND_ROBIN = 1,
}

/** Values of server_channel_binding, as in libpq. */
export const enum ChannelBindingMode {
  DISABLE,
  PREFER,
  REQUIRE,
}

export const channelBindingMap: readonly Lookup[] = [
  { name: 'disable', value: ChannelBindingMode.DISABLE },
  { name: 'prefer', value: ChannelBindingMode.PREFER },
  { name: 'require', value: ChannelBindingMode.REQUIRE },
];

/** The form of log lines. */
export const enum LogFormat {
  TEXT,
  JSON,
}

export const logFormatMap: readonly Lookup[] = [
  { name: 'text', value: LogFormat.TEXT },
  { name: 'json', value: LogFormat.JSON },
];

/** Values of target_session_attrs, as in libpq, but for prefer-standby. */
export const enum TargetSession {
  ANY,
  READ_WRITE,
  READ_ONLY,
  PRIMARY,
  STANDBY,
}

export const targetSessionMap: readonly Lookup[] = [
  { name: 'any', value: TargetSession.ANY },
  { name: 'read-write', value: TargetSession.READ_WRITE },
  { name: 'read-only', value: TargetSession.READ_ONLY },
  { name: 'primary', value: TargetSession.PRIMARY },
  { name: 'standby', value: TargetSession.STANDBY },
];

export const authTypeMap: readonly Lookup[] = [
  { name: 'any', value: AuthType.ANY },
  { name: 'trust', value: AuthType.TRUST },
  { name: 'plain', value: AuthType.PLAIN },
  { name: 'md5', value: AuthType.MD5 },
  { name: 'cert', value: AuthType.CERT },
  { name: 'hba', value: AuthType.HBA },
  { name: 'ldap', value: AuthType.LDAP },
  { name: 'pam', value: AuthType.PAM },
  { name: 'scram-sha-256', value: AuthType.SCRAM_SHA_256 },
];

export const poolModeMap: readonly Lookup[] = [
  { name: 'session', value: PoolMode.SESSION },
  { name: 'transaction', value: PoolMode.TX },
  { name: 'statement', value: PoolMode.STMT },
];

export const dirtySessionMap: readonly Lookup[] = [
  { name: 'ignore', value: DirtySession.IGNORE },
  { name: 'log', value: DirtySession.LOG },
  { name: 'reset', value: DirtySession.RESET },
  { name: 'refuse', value: DirtySession.REFUSE },
];

export const listenModeMap: readonly Lookup[] = [
  { name: 'ignore', value: ListenMode.IGNORE },
  { name: 'refuse', value: ListenMode.REFUSE },
  { name: 'pin', value: ListenMode.PIN },
  { name: 'share', value: ListenMode.SHARE },
];

export const listenLossMap: readonly Lookup[] = [
  { name: 'disconnect', value: ListenLoss.DISCONNECT },
  { name: 'notice', value: ListenLoss.NOTICE },
];

export const sslModeMap: readonly Lookup[] = [
  { name: 'disable', value: SslMode.DISABLED },
  { name: 'allow', value: SslMode.ALLOW },
  { name: 'prefer', value: SslMode.PREFER },
  { name: 'require', value: SslMode.REQUIRE },
  { name: 'verify-ca', value: SslMode.VERIFY_CA },
  { name: 'verify-full', value: SslMode.VERIFY_FULL },
];

export const sigtermShutdownMap: readonly Lookup[] = [
  { name: 'wait_for_clients', value: SigtermShutdown.WAIT_FOR_CLIENTS },
  { name: 'wait_for_servers', value: SigtermShutdown.WAIT_FOR_SERVERS },
  { name: 'wait_for_transactions', value: SigtermShutdown.WAIT_FOR_TRANSACTIONS },
];

/** The environment can allow them where the ini must also be one for PgBouncer, which does not know the setting. */
export const CORE_DUMPS_DEFAULT = process.env.TSBOUNCER_CORE_DUMPS === '1' ? '1' : '0';

/** The values of loop_backend, as native.loopInit() takes them. */
export const LOOP_BACKENDS = ['auto', 'uring', 'epoll'] as const;

export const loopBackendMap: readonly Lookup[] = LOOP_BACKENDS.map((name, value) => ({ name, value }));

/** The value of io_threads that lets the number of CPUs decide. */
export const IO_THREADS_AUTO = -1;
const IO_THREADS_MOST = 64;

export const ioThreadsMap: readonly Lookup[] = [
  { name: 'auto', value: IO_THREADS_AUTO },
  ...Array.from({ length: IO_THREADS_MOST + 1 }, (_, value) => ({ name: String(value), value })),
];

export const loadBalanceHostsMap: readonly Lookup[] = [
  { name: 'disable', value: LoadBalanceHosts.DISABLE },
  { name: 'round-robin', value: LoadBalanceHosts.ROUND_ROBIN },
];
