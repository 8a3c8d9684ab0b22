/*
 * The differences that are meant, each with its reason. `npm run compare` fails on a difference that is not here, and on an
 * entry that no longer occurs. The rule behind most entries: tsbouncer follows PgBouncer 1.25, and Debian's
 * package is older; those carry `until`, the first version that behaves like tsbouncer.
 */

import type { MeantDifference } from './expected-differences';
import { olderOriginals } from './older-originals';

const forGood: MeantDifference[] = [
  {
    reason: 'the line at start names the program, and what it is built on',
    step: /^log/,
    left: /^LOG process up: PgBouncer /,
    right: /^LOG process up: tsbouncer /,
  },
  {
    reason: 'SHOW VERSION names the compatible version first, for tools that read it, and tsbouncer behind it',
    left: /^row version=PgBouncer [\d.]+$/,
    right: /^row version=PgBouncer [\d.]+ \(tsbouncer [\d.]+\)$/,
  },
  {
    reason: '--version: as above, and what tsbouncer is built on',
    step: /^\$ (-V|--version)$/,
    either: /^stdout: (PgBouncer |libevent |adns: |tls: |systemd: |loop: |node )/,
  },
  {
    reason: '--help ends in whom tsbouncer is compatible with, not in where to report bugs of PgBouncer',
    step: /^\$ (-h|--help)$/,
    either: /^stdout: (Report bugs to |PgBouncer home page: |Compatible with PgBouncer )/,
  },
  {
    reason: "--check and mkauth are tsbouncer's own",
    scenario: /^cli: usage$/,
    right: /--check|CONFIG_FILE|mkauth/,
  },
  {
    reason: '-d answers when the daemon serves or has failed; the original returns 0 before it knows, and says nothing',
    scenario: /^cli: daemon$/,
    left: /^exit 0$/,
    right: /^exit 1$/,
  },
  {
    reason: '-d prints why the daemon did not come up; the original sends that to /dev/null or the log file only',
    scenario: /^cli: daemon$/,
    right: /^stderr: /,
  },
  {
    reason: 'a config "file" that is a folder is named as such; the original reads an empty file',
    scenario: /^cli: usage$/,
    step: /^\$ \/$/,
    left: /main section missing from config file/,
    right: /could not load file "\/": Is a directory/,
  },
  {
    reason: 'a path that is too long for a Unix socket is refused as such; the original cuts it off and tries that one',
    step: /^\$ long unix_socket_dir$/,
    left: /cannot listen on unix:.*: bind\(\): No such file or directory$/,
    right: /cannot listen on unix:.*: bind\(\): File name too long$/,
  },
  {
    reason: 'free sockets are not kept in caches of slabs, so only those are counted that are just being freed',
    left: /^row list=free_(clients|servers) items=\d+$/,
    right: /^row list=free_(clients|servers) items=\d+$/,
  },
  {
    reason: "SHOW ACTIVE_SOCKETS: the asking client's own buffer is already empty when its command runs",
    step: /SHOW ACTIVE_SOCKETS$/,
    left: /^row type=C .*database=pgbouncer /,
  },
  {
    reason:
      'before the login a packet that nobody can send then is refused by its length, without waiting for it to be complete',
    scenario: /^login: malformed startup packets$|^tls: bytes that do not belong there$/,
    left: /client_login_timeout/,
    right: /bad packet header: '474554202f204854'/,
    since: '1.25',
  },
  {
    reason: 'a SASL message that cannot be read ends the login; the original leaves the client waiting for its timeout',
    scenario: /^login: bad SCRAM messages$/,
    left: /client_login_timeout/,
    right: /SASL authentication failed/,
    since: '1.25',
  },
  {
    reason: 'an unknown user found out by auth_query does not cost the server connection that asked for it',
    scenario: /^login: auth_query$/,
    step: /^log/,
    left: /closing because: client disconnect before everything was sent to the server/,
  },
  {
    reason: 'a file of names that an HBA line refers to and that cannot be read is complained about',
    scenario: /^rules: hba: names from files$/,
    step: /^log/,
    right: /^WARNING could not open file of names /,
  },
  {
    reason: "a bad scheme in an LDAP URL is named; the original looks the URL's error up in another list, of results",
    scenario: /^rules: ldap by rules/,
    step: /^log/,
    left: /^WARNING could not parse LDAP URL ".*": Time limit exceeded$/,
    right: /^WARNING unsupported LDAP URL scheme: http$/,
  },
  {
    reason: 'a RELOAD that fails leaves the peers as they are; the original drops them all',
    scenario: /^peers: peers come and go$/,
    right: /^row peer_id=\d+ |^row list=peers items=2$/,
  },
  {
    reason: 'a RELOAD that fails leaves the peers as they are: what SHOW LISTS has',
    scenario: /^peers: peers come and go$/,
    left: /^row list=peers items=0$/,
  },
  {
    reason: 'a key of 40 bytes is one that protocol 3.2 allows: it is looked for, and belongs to nobody',
    scenario: /^login: cancel requests before any login$/,
    step: /^log/,
    left: /closing because: bad cancel request /,
    right: /closing because: failed cancel request /,
  },
  {
    reason: 'a server that hangs up on the startup packet of protocol 3.2 is asked again with 3.0',
    scenario: /^tls: server_tls_sslmode=/,
    step: /^log/,
    right: /^LOG S: .* closing because: server refused protocol 3\.2, trying 3\.0 /,
  },
  {
    reason: 'an error in answer to the request for TLS is logged with its text',
    scenario: /^tls: server_tls_sslmode=/,
    step: /^log/,
    left: /^LOG S: .*TLSERROR closing because: bad sslreq answer /,
    right: /^LOG S: .*TLSERROR closing because: FATAL: no /,
  },
  {
    reason: 'an error in answer to the request for TLS is logged with its text: as a warning',
    scenario: /^tls: server_tls_sslmode=/,
    step: /^log/,
    right: /^WARNING server login failed: FATAL: no$/,
  },
  {
    reason: 'a server whose reset query or check query failed is closed, with a warning that says why',
    scenario: /^queries: (reset|check) query that fails$/,
    step: /^log/,
    right: /closing because: (reset|test) query failed |server_(reset|check)_query failed: | new connection to server /,
  },
  {
    reason: 'a request that no server has begun is canceled by the pooler; the original ignores the cancel request',
    scenario: /^queries: cancel of a waiting client$/,
  },
  {
    reason: 'the console answers an empty command as PostgreSQL does',
    scenario: /^console: syntax$/,
    step: /^console: /,
    left: /^ErrorResponse .* M=invalid command '( ?;? ?|-- comment)', use SHOW HELP;$/,
    right: /^EmptyQueryResponse$/,
  },
  {
    reason: 'the console answers an empty command as PostgreSQL does: nothing is logged',
    scenario: /^console: syntax$/,
    step: /^log/,
    left: /invalid command '( ?;? ?|-- comment)', use SHOW HELP;$/,
  },
  {
    reason: 'the console speaks the extended protocol',
    scenario: /^console: extended protocol$/,
  },
  {
    reason: 'peers that are dropped are named in the log; the original prints an empty name',
    scenario: /^peers: /,
    step: /^log/,
    either: /^WARNING dropping peer \d* ?as it does not exist anymore$/,
  },
  {
    reason:
      'PAUSE that is canceled: the client that waits for it gets an error; the original leaves it without an answer',
    scenario: /^console: PAUSE that is canceled$/,
    step: /^log/,
    right: /canceling statement due to user request$/,
  },
  {
    reason:
      'a `*` line that leaves the config is out of force after RELOAD; the original keeps it until it is restarted',
    scenario: /^reload: the fallback database leaves$/,
    step: /^(login postgres on template1|log)$/,
  },
  {
    reason:
      'a user with an empty password in auth_file is not let in by SCRAM either; the original makes a secret of it, which anybody can prove to know',
    scenario: /^login: passwords, auth_type=scram-sha-256$/,
    step: /^login c_empty on postgres with password ""$/,
  },
  {
    reason: 'a user with an empty password in auth_file is not let in by SCRAM either: what the log says',
    scenario: /^login: passwords, auth_type=scram-sha-256$/,
    step: /^log$/,
    either: /postgres\/c_empty@/,
  },
];

/** The online reboot, which tsbouncer does with a handover of its own. */
const handover: MeantDifference[] = [
  {
    reason:
      'between two tsbouncer processes the old one is not suspended: it describes all that it has at once, and says so',
    scenario: /^reboot: /,
    step: /^log of the old process$/,
    left: /^LOG SUSPEND command issued$/,
    right: /^LOG HANDOVER command issued$/,
  },
  {
    reason: 'the old process counts what it describes, and warns of what cannot be handed over',
    scenario: /^reboot: /,
    step: /^log of the old process$/,
    right: /^(LOG|WARNING) handover: /,
  },
  {
    reason: 'the new process says what it took over, and how long the pause was',
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
    reason: 'what is taken over does not log in or connect anew; the original logs it as if it did',
    scenario: /^reboot: /,
    step: /^log/,
    left: /^LOG C: .* login attempt: |^LOG S: .* new connection to server /,
  },
  {
    reason: 'times of queries and transactions go on; the original misses the beginning of those that are under way',
    scenario: /^reboot: in the middle of a query$/,
    step: /^log/,
    left: /^WARNING C: .* FIXME: (transaction|query) end, but (xact|query)_start == 0$/,
  },
  {
    reason: 'a process that is paused can be succeeded; the original refuses to suspend it, and the new process ends',
    scenario: /^reboot: everything paused$/,
  },
  {
    reason: 'without a Unix socket the old process cannot be found, which is said; the original then fails at its port',
    scenario: /^reboot: no Unix socket to find the old one by$/,
    step: /^-R/,
    either: /^(LOG|WARNING|FATAL) /,
  },
];

/** The original's own bug reports in its log. */
const bugs: MeantDifference[] = [
  {
    reason: 'the original cuts a long error of a server off in a buffer, and calls that a bug in its log',
    step: /^log/,
    left: /^WARNING bug in src\/objects\.c:\d+ - string truncated$/,
    since: '1.25',
  },
];

export const meantDifferences: readonly MeantDifference[] = [...forGood, ...bugs, ...olderOriginals, ...handover];
