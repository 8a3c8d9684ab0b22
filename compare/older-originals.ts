/*
 * Intended differences from older versions of PgBouncer: tsbouncer follows 1.26, and Debian 12 has 1.18. Each entry
 * names the first version that behaves like tsbouncer, according to PgBouncer's changelog.
 */

import type { MeantDifference } from './expected-differences';

/** Columns added to SHOW, by version. */
const newColumns: MeantDifference[] = [
  {
    reason: 'SHOW CLIENTS, SERVERS, SOCKETS: prepared statements (1.21), replication (1.23), id (1.24)',
    step: /SHOW (CLIENTS|SERVERS|SOCKETS|ACTIVE_SOCKETS)/,
    right: /^column (replication|prepared_statements|id) /,
    until: '1.24',
  },
  {
    reason: 'SHOW DATABASES: reserve_pool is called reserve_pool_size (1.24)',
    step: /SHOW DATABASES/,
    left: /^column reserve_pool int4$/,
    right: /^column reserve_pool_size int4$/,
    until: '1.24',
  },
  {
    reason: 'SHOW DATABASES, POOLS: server_lifetime (1.23), load_balance_hosts and client limits (1.24)',
    step: /SHOW (DATABASES|POOLS)/,
    right: /^column (server_lifetime|load_balance_hosts|(max|current)_client_connections) /,
    until: '1.24',
  },
  {
    reason: 'SHOW USERS: pool sizes, limits and counts of connections (1.23, 1.24)',
    step: /SHOW USERS/,
    right: /^column (reserve_)?pool_size |^column (max_user|current|max_user_client|current_client)_connections /,
    until: '1.24',
  },
  {
    reason: 'SHOW STATS and its kin: server assignments (1.23), prepared statements (1.24), client logins (1.26)',
    step: /SHOW (STATS|TOTALS)/,
    right:
      /^(column|row name=)(\s?)(total_|avg_)?(ps_)?(server_assignment|client_parse|server_parse|bind|client_login)_count\b/,
    until: '1.26',
  },
  {
    reason: 'SHOW LISTS: peers and their pools (1.19)',
    step: /SHOW LISTS/,
    right: /^row list=peer/,
    until: '1.19',
  },
  {
    reason: 'SHOW MEM: caches that came with peers, prepared statements and credentials of their own',
    step: /SHOW MEM/,
    right: /^row name=(credentials|peer|peer_pool|outstanding_request|var_list|server_prepared_statement)_cache /,
    until: '1.25',
  },
];

/** Commands and settings added later. */
const newCommands: MeantDifference[] = [
  { reason: 'SHOW STATE (1.19)', step: /SHOW STATE$/, until: '1.19' },
  { reason: 'SHOW PEERS and PEER_POOLS (1.19)', step: /SHOW PEER/, until: '1.19' },
  {
    reason: 'SHOW STATE, PEERS and PEER_POOLS (1.19): their refusal in the log',
    step: /^log/,
    left: /invalid command 'SHOW (STATE|PEERS|PEER_POOLS)'/,
    until: '1.19',
  },
  {
    reason: 'SHOW CONFIG: settings that came since, and defaults that changed since',
    step: /SHOW CONFIG$/,
    until: '1.25',
  },
  {
    reason: 'SHOW CONFIG: settings that only tsbouncer has, and those of 1.26',
    step: /SHOW CONFIG$/,
    right: /^row key=/,
    since: '1.25',
  },
  {
    reason: 'SHOW CONFIG: listen_backlog is 4096 by default',
    step: /SHOW CONFIG$/,
    left: /^row key=listen_backlog /,
    since: '1.25',
  },
  {
    reason: 'SHOW USERS: a user without pool sizes does not have those of the user before (1.26)',
    step: /SHOW USERS$/,
    left: /^row name=\w+ pool_size= +\d+ reserve_pool_size= +\d+ /,
    right: /^row name=\w+ pool_size= reserve_pool_size= /,
    since: '1.25',
    until: '1.26',
  },
];

/** Messages to clients. */
const newAnswers: MeantDifference[] = [
  {
    reason:
      'IntervalStyle is tracked like client_encoding (1.20), so the order in which clients are told them is another',
    either: /^ParameterStatus (IntervalStyle|client_encoding) = /,
    until: '1.20',
  },
  {
    reason: 'clients are told the version, pool mode and max_prepared_statements (1.26)',
    right: /^ParameterStatus pgbouncer\.(version|pool_mode|max_prepared_statements) = /,
    until: '1.26',
  },
  {
    reason: 'all parameters that PostgreSQL reports are tracked (1.26), so they are told in another order',
    either: /^ParameterStatus (default_transaction_read_only|scram_iterations|search_path|session_authorization) = /,
    until: '1.26',
  },
  {
    reason: 'the console names the version that it speaks for',
    left: /^ParameterStatus server_version = [\d.]+\/bouncer$/,
    right: /^ParameterStatus server_version = [\d.]+\/bouncer$/,
    until: '1.26.1',
  },
  {
    reason: 'startup parameter `options` is read (1.20)',
    scenario: /^login: startup parameters$/,
    step: /^startup: options|^log$/,
    until: '1.20',
  },
  {
    reason: 'later minor versions and extensions of the protocol are negotiated (1.23)',
    scenario: /^login: protocol versions$/,
    until: '1.23',
  },
  {
    reason: 'the SQLSTATE of an error in a login to the server is passed on (1.20)',
    left: /^ErrorResponse S=FATAL C=08P01 M=/,
    right: /^ErrorResponse S=FATAL C=(3D000|28P01|28000) M=/,
    until: '1.20',
  },
  {
    reason: 'user pgbouncer is asked for a password like any other user who may not use the console',
    scenario: /^login: the console$/,
    until: '1.25',
  },
  {
    reason: 'RELOAD says when the config has errors (1.25)',
    step: /^console: RELOAD$/,
    left: /^CommandComplete RELOAD$/,
    right: /^ErrorResponse S=ERROR C=F0000 M=RELOAD failed/,
    until: '1.25',
  },
];

/** Scenarios in which older versions behave differently as a whole. */
const newBehaviour: MeantDifference[] = [
  {
    reason: 'HBA rules for replication, and ident maps (1.23)',
    scenario: /^rules: hba: (one rule after the other|lines that cannot be read)$/,
    step: /^log/,
    left: /could not parse hba config line 1$|replication is not supported|hba line \d+: unsupported parameters/,
    until: '1.23',
  },
  {
    reason: 'HBA rules with an ident map (1.23): what is said of bad ones',
    scenario: /^rules: hba: lines that cannot be read$/,
    step: /^log/,
    right: /[Ii]dent map /,
    until: '1.23',
  },
  {
    reason: 'who comes where no rule fits is told so (1.24)',
    scenario: /^rules: /,
    left: /login rejected( \(age=Ns\))?$/,
    right: /no authentication method is found( \(age=Ns\))?$/,
    until: '1.24',
  },
  {
    reason: 'the default ciphers, and their order, are those of OpenSSL (1.21)',
    scenario: /^tls: /,
    either: /TLSv1\.2[/ ]\S*(CHACHA20.POLY1305|AES.?256.GCM)/,
    until: '1.21',
  },
  {
    reason: 'errors of OpenSSL are logged with their number and library (1.26)',
    scenario: /^tls: set while running|^tls: the files change$/,
    left: /TLS setup failed: .*: (\(null\)|no certificate or crl found)$/,
    right: /TLS setup failed: .*: error:[0-9A-F]{8}:/,
    until: '1.26',
  },
  {
    reason: 'inside TLS, too, a packet that nobody can send then is refused by its length',
    scenario: /^tls: bytes that do not belong there$/,
    left: /client sent partial pkt in startup phase/,
    right: /bad packet header: '474554202f204854'/,
    until: '1.25',
  },
  {
    reason: 'startup packets must end where they say (1.25)',
    scenario: /^login: malformed startup packets$/,
    step: /^startup: (nothing but a length|no last terminator|key without value|bytes behind the terminator|HTTP)$|^log$/,
    until: '1.25',
  },
  {
    reason: 'KILL_CLIENT (1.24)',
    step: /KILL_CLIENT/,
    left: /invalid command 'KILL_CLIENT/,
    right: /invalid client pointer supplied|client not found|admin access needed/,
    until: '1.24',
  },
  {
    reason: 'KILL_CLIENT (1.24), and ENABLE pgbouncer, below: what the log says',
    scenario: /^console: (wrong arguments|what a stats user may do)$/,
    step: /^log/,
    left: /invalid command 'KILL_CLIENT|cannot disable admin db/,
    right: /invalid client pointer supplied|client not found|admin access needed|cannot enable admin db/,
    until: '1.24',
  },
  {
    reason: 'ENABLE pgbouncer, below: what the log says',
    scenario: /^console: wrong arguments$/,
    step: /^log/,
    left: /cannot disable admin db/,
    right: /cannot enable admin db/,
    since: '1.24',
    until: '1.26',
  },
  {
    reason: 'ENABLE pgbouncer names what cannot be done, not its opposite',
    step: /^console: ENABLE pgbouncer$/,
    left: /cannot disable admin db/,
    right: /cannot enable admin db/,
    until: '1.26',
  },
  {
    reason: 'SHOW CLIENTS tells idle clients from active ones (1.25)',
    step: /SHOW CLIENTS$/,
    left: /^row type=C .* state=active /,
    right: /^row type=C .* state=idle /,
    until: '1.25',
  },
  {
    reason: 'SHOW STATE (1.19), behind other queries',
    scenario: /^console: several queries at once$/,
    step: /^a: receives/,
    left: /invalid command 'SHOW STATE'/,
    until: '1.19',
  },
  {
    reason: 'SHOW STATE (1.19), behind other queries: its rows',
    scenario: /^console: several queries at once$/,
    step: /^a: receives/,
    right: /^column (key|value) text$|^row key=(active|paused|suspended) |^CommandComplete SHOW$/,
    until: '1.19',
  },
  {
    reason: 'SIGQUIT ends the process in order, with exit code 0 (1.23)',
    step: /^the process ends$/,
    left: /^exit SIGQUIT$/,
    right: /^exit 0$/,
    until: '1.23',
  },
  {
    reason: 'SIGTERM waits for the clients to leave (1.23), and the exit code is 0 (1.19)',
    scenario: /^signals: TERM without clients$/,
    until: '1.23',
  },
  {
    reason: 'SIGINT says in the log what it waits for (1.23)',
    step: /^log/,
    left: /got SIGINT, shutting down$/,
    right: /got SIGINT, shutting down, waiting for all servers connections to be released$/,
    until: '1.23',
  },
  {
    reason: 'the forecast of descriptors at start counts another number of users',
    scenario: /^login: auth_type=any/,
    step: /^log/,
    left: /^LOG kernel file descriptor limit: /,
    right: /^LOG kernel file descriptor limit: /,
    until: '1.25',
  },
];

/** Output to stderr at the start. */
const newStartLines: MeantDifference[] = [
  {
    reason: 'a pooler that can listen nowhere says whether addresses or the Unix socket were the trouble (1.19)',
    scenario: /^cli: config files$/,
    left: /^stderr: FATAL nowhere to listen on$/,
    right: /^stderr: FATAL failed to (listen on any address|create unix socket)/,
    until: '1.19',
  },
];

/** Log lines. */
const newLogLines: MeantDifference[] = [
  {
    reason: 'login attempts say whether they are for replication (1.23)',
    step: /^log/,
    left: /login attempt: .* tls=\S+$/,
    right: /login attempt: .* tls=\S+ replication=no$/,
    until: '1.23',
  },
  {
    reason: 'SIGQUIT is logged and ends the process in order, with exit code 0 (1.23)',
    step: /^exit code/,
    left: /^SIGQUIT$/,
    right: /^0$/,
    until: '1.23',
  },
  {
    reason: 'SIGQUIT is logged and ends the process in order (1.23): its line',
    step: /^log/,
    right: /^LOG got SIGQUIT, fast exit$/,
    until: '1.23',
  },
  {
    reason: 'the stats line counts prepared statements (1.24) and client logins (1.26)',
    step: /^log/,
    left: /^LOG stats: /,
    right: /^LOG stats: /,
    until: '1.26',
  },
  {
    reason: 'RELOAD says when the config has errors (1.25): in the log',
    step: /^log/,
    right: /RELOAD [Ff]ailed, see logs for /,
    until: '1.25',
  },
  {
    reason: 'a failed auth_query is logged with the error of the server (1.24)',
    step: /^log/,
    right: /^ERROR S: error in auth_query: /,
    until: '1.24',
  },
  {
    reason: 'disable_pqexec names the packet by its name',
    step: /^log/,
    left: /client used 'Q' packet type$/,
    right: /client used "Query" packet type$/,
    until: '1.25',
  },
  {
    reason: 'the sending of cancel requests is logged at a finer level (1.21)',
    step: /^log/,
    left: /^LOG started sending cancel request$/,
    until: '1.21',
  },
  {
    reason: 'auto-databases are logged without `db=`',
    step: /^log/,
    left: /registered new auto-database: db=/,
    right: /registered new auto-database: (?!db=)/,
    until: '1.25',
  },
  {
    reason: 'the log names the limit for which a server connection is evicted (1.26)',
    step: /^log/,
    left: /closing because: evicted \(/,
    right: /closing because: evicted for (pool_size|max_db_connections|max_user_connections) \(/,
    until: '1.26',
  },
  {
    reason: 'a failed login to the server is logged with its reason (1.25)',
    step: /^log/,
    left: /closing because: login failed \(/,
    right:
      /closing because: ((database|role) ".*" does not exist|password authentication failed|pg_hba\.conf rejects) /,
    until: '1.25',
  },
];

export const olderOriginals: readonly MeantDifference[] = [
  ...newColumns,
  ...newCommands,
  ...newAnswers,
  ...newBehaviour,
  ...newStartLines,
  ...newLogLines,
];
