/*
 * The intended differences, each with its reason. `npm run compare` fails on a difference that is not listed here, and
 * on an entry that no longer occurs. These entries apply to every version of PgBouncer; older-originals.ts has those that
 * exist only because a PgBouncer is older than 1.26.
 */

import type { MeantDifference } from './expected-differences';
import { olderOriginals } from './older-originals';

const forGood: MeantDifference[] = [
  {
    reason: 'the start line names the program and its components',
    step: /^log/,
    left: /^LOG process up: PgBouncer /,
    right: /^LOG process up: tsbouncer /,
  },
  {
    reason: 'SHOW VERSION names the compatible version',
    left: /^row version=PgBouncer [\d.]+$/,
    right: /^row version=PgBouncer [\d.]+$/,
  },
  {
    reason: 'clients with TLS are offered channel binding, as in PostgreSQL',
    left: /^AuthenticationSASL SCRAM-SHA-256$/,
    right: /^AuthenticationSASL SCRAM-SHA-256-PLUS SCRAM-SHA-256$/,
  },
  {
    reason:
      'SHOW HELP names the commands that only tsbouncer has, and FDS and SUSPEND, which PgBouncer 1.26 has removed',
    step: /SHOW HELP$/,
  },
  {
    reason: '--version names the compatible version, and the components of tsbouncer',
    step: /^\$ (-V|--version)$/,
    either: /^stdout: (PgBouncer |tsbouncer |libevent |adns: |tls: |systemd: |loop: |node )/,
  },
  {
    reason: '--help ends with the compatible version instead of the address for bug reports',
    step: /^\$ (-h|--help)$/,
    either: /^stdout: (Report bugs to |PgBouncer home page: |Compatible with PgBouncer )/,
  },
  {
    reason: '--check and mkauth exist only in tsbouncer',
    scenario: /^cli: usage$/,
    right: /--check|CONFIG_FILE|mkauth/,
  },
  {
    reason: '-d exits when the daemon serves or has failed; PgBouncer exits with 0 before it knows',
    scenario: /^cli: daemon$/,
    left: /^exit 0$/,
    right: /^exit 1$/,
  },
  {
    reason: '-d prints why the daemon failed to start; PgBouncer writes that only to the log file, if at all',
    scenario: /^cli: daemon$/,
    right: /^stderr: /,
  },
  {
    reason: 'a config path that is a folder is reported; PgBouncer reads it as an empty file',
    scenario: /^cli: usage$/,
    step: /^\$ \/$/,
    left: /main section missing from config file/,
    right: /could not load file "\/": Is a directory/,
  },
  {
    reason: 'a path that is too long for a Unix socket is refused; PgBouncer truncates it and tries the result',
    step: /^\$ long unix_socket_dir$/,
    left: /cannot listen on unix:.*: bind\(\): No such file or directory$/,
    right: /cannot listen on unix:.*: bind\(\): File name too long$/,
  },
  {
    reason:
      'there are no slab caches: free_clients and free_servers are the highest numbers so far minus the current ones',
    left: /^row list=free_(clients|servers) items=\d+$/,
    right: /^row list=free_(clients|servers) items=\d+$/,
  },
  {
    reason: "SHOW ACTIVE_SOCKETS: the asking client's own buffer is already empty when its command runs",
    step: /SHOW ACTIVE_SOCKETS$/,
    left: /^row type=C .*database=pgbouncer /,
  },
  {
    reason: 'a packet that is not allowed before the login is refused by its length, before it is complete',
    scenario: /^login: malformed startup packets$|^tls: bytes that do not belong there$/,
    left: /client_login_timeout/,
    right: /bad packet header: '474554202f204854'/,
    since: '1.25',
  },
  {
    reason: 'a malformed SASL message ends the login; PgBouncer lets the client wait for its timeout',
    scenario: /^login: bad SCRAM messages$/,
    left: /client_login_timeout/,
    right: /SASL authentication failed/,
    since: '1.25',
  },
  {
    reason: 'an auth_query that finds no user does not close its server connection',
    scenario: /^login: auth_query$/,
    step: /^log/,
    left: /closing because: client disconnect before everything was sent to the server/,
  },
  {
    reason: 'an unreadable file of names in an HBA line is logged',
    scenario: /^rules: hba: names from files$/,
    step: /^log/,
    right: /^WARNING could not open file of names /,
  },
  {
    reason: 'a file of names is read as by PostgreSQL; PgBouncer skips a rule whose file has a comment',
    scenario: /^rules: hba: several names in a line of a file$/,
  },
  {
    reason: 'a bad scheme in an LDAP URL is named; PgBouncer logs the text of an unrelated error code',
    scenario: /^rules: ldap by rules/,
    step: /^log/,
    left: /^WARNING could not parse LDAP URL ".*": Time limit exceeded$/,
    right: /^WARNING unsupported LDAP URL scheme: http$/,
  },
  {
    reason: 'RELOAD to TLS settings that cannot be used changes nothing; PgBouncer applies the other settings',
    scenario: /^tls: set while running$/,
    step: /^log/,
    left: /^ERROR TLS configuration could not be reloaded, keeping old configuration$/,
    right: /^ERROR RELOAD Failed, see logs for more details$/,
  },
  {
    reason: 'RELOAD to TLS settings that cannot be used changes nothing: its second log line',
    scenario: /^tls: set while running$/,
    step: /^log/,
    right: /^WARNING config file loading failed$/,
  },
  {
    reason: 'a failed RELOAD keeps the peers; PgBouncer drops them all',
    scenario: /^peers: peers come and go$/,
    right: /^row peer_id=\d+ |^row list=peers items=2$/,
  },
  {
    reason: 'a failed RELOAD keeps the peers: row of SHOW LISTS',
    scenario: /^peers: peers come and go$/,
    left: /^row list=peers items=0$/,
  },
  {
    reason: 'clients that ask for protocol 3.2 get it; PgBouncer negotiates down to 3.0',
    scenario: /^login: protocol versions$/,
    step: /^startup: protocol 3\.[29]$/,
    either: /^NegotiateProtocolVersion minor [02] |^BackendKeyData /,
    since: '1.23',
  },
  {
    reason:
      'DEALLOCATE of a name of the protocol frees it; PgBouncer forwards it, and the server does not know the name',
    scenario: /^prepared: forgotten$/,
    step: /^c3: |^log/,
    since: '1.22',
  },
  {
    reason: 'protocol 3.2 allows a cancel key of 40 bytes: it is looked up, and no client has it',
    scenario: /^login: cancel requests before any login$/,
    step: /^log/,
    left: /closing because: bad cancel request /,
    right: /closing because: failed cancel request /,
  },
  {
    reason: 'a server that closes the connection after a startup packet with protocol 3.2 is tried again with 3.0',
    scenario: /^tls: server_tls_sslmode=/,
    step: /^log/,
    right: /^LOG S: .* closing because: server refused protocol 3\.2, trying 3\.0 /,
  },
  {
    reason: 'an error in answer to SSLRequest is logged with its text',
    scenario: /^tls: server_tls_sslmode=/,
    step: /^log/,
    left: /^LOG S: .*TLSERROR closing because: bad sslreq answer /,
    right: /^LOG S: .*TLSERROR closing because: FATAL: no /,
  },
  {
    reason: 'an error in answer to SSLRequest is also logged as a warning',
    scenario: /^tls: server_tls_sslmode=/,
    step: /^log/,
    right: /^WARNING server login failed: FATAL: no$/,
  },
  {
    reason: 'a server whose reset query or check query has failed is closed with a warning that gives the reason',
    scenario: /^queries: (reset|check) query that fails$/,
    step: /^log/,
    right: /closing because: (reset|test) query failed |server_(reset|check)_query failed: | new connection to server /,
  },
  {
    reason: 'a request that still waits for a server is canceled by the pooler; PgBouncer ignores the cancel request',
    scenario: /^queries: cancel of a waiting client$/,
  },
  {
    reason: 'the console answers an empty command as in PostgreSQL',
    scenario: /^console: syntax$/,
    step: /^console: /,
    left: /^ErrorResponse .* M=invalid command '( ?;? ?|-- comment)', use SHOW HELP;$/,
    right: /^EmptyQueryResponse$/,
  },
  {
    reason: 'the console does not log an empty command as an error',
    scenario: /^console: syntax$/,
    step: /^log/,
    left: /invalid command '( ?;? ?|-- comment)', use SHOW HELP;$/,
  },
  {
    reason: 'the console supports the extended protocol',
    scenario: /^console: extended protocol$/,
  },
  {
    reason: 'dropped peers are named in the log; PgBouncer prints an empty name',
    scenario: /^peers: /,
    step: /^log/,
    either: /^WARNING dropping peer \d* ?as it does not exist anymore$/,
  },
  {
    reason: 'a client whose PAUSE is canceled gets an error; PgBouncer sends no answer',
    scenario: /^console: PAUSE that is canceled$/,
    step: /^log/,
    right: /canceling statement due to user request$/,
  },
  {
    reason: 'a removed `*` line has no effect after RELOAD, and its databases leave; PgBouncer uses it until a restart',
    scenario: /^reload: the fallback database leaves$/,
    step: /^(login postgres on (second|template1)|log)$/,
  },
  {
    reason:
      'SCRAM also refuses a user with an empty password in auth_file; PgBouncer accepts a proof of the empty password',
    scenario: /^login: passwords, auth_type=scram-sha-256$/,
    step: /^login c_empty on postgres with password ""$/,
  },
  {
    reason: 'SCRAM also refuses a user with an empty password in auth_file: log lines',
    scenario: /^login: passwords, auth_type=scram-sha-256$/,
    step: /^log$/,
    either: /postgres\/c_empty@/,
  },
  {
    reason: 'the server connection is kept if auth_query fails: clients that have not logged in cannot close it',
    scenario: /^login: auth_query that fails$/,
    step: /^log/,
    left: /^LOG S: .* closing because: error response from auth_query /,
  },
];

/** The online reboot, for which tsbouncer has its own handover. */
const handover: MeantDifference[] = [
  {
    reason: 'an old tsbouncer process is not suspended for a new tsbouncer process: it logs HANDOVER instead',
    scenario: /^reboot: /,
    step: /^log of the old process$/,
    left: /^LOG SUSPEND command issued$/,
    right: /^LOG HANDOVER command issued$/,
  },
  {
    reason: 'the old process logs what it describes, and warns about connections that cannot be handed over',
    scenario: /^reboot: /,
    step: /^log of the old process$/,
    right: /^(LOG|WARNING) handover: /,
  },
  {
    reason: 'the new process logs what it took over and the length of the pause',
    scenario: /^reboot: /,
    step: /^log/,
    right: /^LOG took over \d+ listening sockets, \d+ clients, \d+ servers; longest pause /,
  },
  {
    reason: 'the online reboot is not deprecated here',
    step: /^log|^-R/,
    left: /^WARNING Online restart is deprecated, use so_reuseport instead$/,
    since: '1.23',
  },
  {
    reason: 'connections taken over are not logged as new; PgBouncer logs them as logins and new connections',
    scenario: /^reboot: /,
    step: /^log/,
    left: /^LOG C: .* login attempt: |^LOG S: .* new connection to server /,
  },
  {
    reason: 'times of queries and transactions in progress are handed over; PgBouncer loses their start',
    scenario: /^reboot: in the middle of a query$/,
    step: /^log/,
    left: /^WARNING C: .* FIXME: (transaction|query) end, but (xact|query)_start == 0$/,
  },
  {
    reason: 'a paused process can be replaced; PgBouncer refuses to suspend it, and the new process exits',
    scenario: /^reboot: everything paused$/,
  },
  {
    reason:
      'without a Unix socket the new process reports that it cannot find the old process; PgBouncer fails to bind the port',
    scenario: /^reboot: no Unix socket to find the old one by$/,
    step: /^-R/,
    either: /^(LOG|WARNING|FATAL) /,
  },
];

/** Reports of its own bugs in PgBouncer's log. */
const bugs: MeantDifference[] = [
  {
    reason: 'PgBouncer truncates a long error of a server in a buffer, and logs that as a bug',
    step: /^log/,
    left: /^WARNING bug in src\/objects\.c:\d+ - string truncated$/,
    since: '1.25',
  },
];

export const meantDifferences: readonly MeantDifference[] = [...forGood, ...bugs, ...olderOriginals, ...handover];
