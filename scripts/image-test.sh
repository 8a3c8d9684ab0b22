#!/usr/bin/env bash
# Starts the container image as operators, charts and the users of other images do, without a container engine.
#
#     scripts/image-test.sh [SCENARIO ...]     the default is all of them
#
# Makes the file systems of packaging/container/Dockerfile from this machine's libraries, and starts each command in
# namespaces of its own: process 1, read-only root, a user without name and rights. Needs root, and Debian's PostgreSQL.
set -euo pipefail
cd "$(dirname "$0")/.."

SCENARIOS=(edoburu url mounted root bitnami cloudnativepg pgo zalando airflow chart refusals)
PG_PORT=5433
TIMEOUT=30

fail() {
  echo "FAILED: $*" >&2
  [ ! -f "${log:-}" ] || sed 's/^/  log: /' "$log" >&2
  exit 1
}

# Runs a test until it is true.
wait_for() {
  local what=$1 end=$((SECONDS + TIMEOUT))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || fail "waited in vain for $what"
    sleep 0.1
  done
}

# ---- file systems -----------------------------------------------------------------------------------------------------

# Copies programs and the libraries that they need.
copy_programs() {
  local root=$1 file library
  shift
  for file; do
    mkdir -p "$root$(dirname "$file")"
    cp -L "$file" "$root$file"
    # a library is copied under the name by which it is found
    for library in $(ldd "$file" 2>/dev/null | grep -o '/[^ ]*'); do
      mkdir -p "$root$(dirname "$library")"
      [ -e "$root$library" ] || cp -L "$library" "$root$library"
    done
  done
}

# The target "small": Node, the program, and the C and C++ libraries.
make_small() {
  mkdir -p "$1"/{usr/bin,usr/sbin,usr/lib,usr/lib64,etc/ssl/certs,proc,dev,controller}
  mkdir -m 1777 "$1/tmp"
  for folder in bin sbin lib lib64; do ln -s "usr/$folder" "$1/$folder"; done
  node scripts/image-root.mjs "$1"
  cp -L "$(command -v node)" "$scratch/node"
  copy_programs "$1" "$(command -v node)"
  [ -e "$1/usr/bin/node" ] || cp "$scratch/node" "$1/usr/bin/node"
  copy_programs "$1" "$1"/usr/lib/tsbouncer/prebuilds/*/*.node
  rm -rf "${1:?}/tmp/"*
  # as where musl is installed too: this Node does not use it
  touch "$1"/usr/lib/ld-musl-{x86_64,aarch64}.so.1
  printf '%s\n' root:x:0:0:root:/:/usr/sbin/nologin nobody:x:65534:65534:nobody:/:/usr/sbin/nologin \
    pgbouncer:x:998:0:pgbouncer:/tmp:/usr/sbin/nologin >"$1/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$1/etc/group"
}

# The default target: with a shell and the programs that hooks use.
make_full() {
  cp -a "$scratch/small" "$1"
  copy_programs "$1" /usr/bin/{sh,bash,env,sleep,pkill,pgrep,killall,ps,cat}
}

# ---- containers -------------------------------------------------------------------------------------------------------

# Process 1 of the container, seen from here; none if it has ended already.
found_container() {
  container=$(pgrep -P "$outside") || ! kill -0 "$outside" 2>/dev/null
}

# Starts a container in the background: start IMAGE USER:GROUP [NAME=VALUE ...] -- COMMAND ...
# `volumes` lists HOST:PATH; a folder is writable, a file is not. `tmpfs` lists folders in memory.
start() {
  local image=$1 user=$2 env=()
  shift 2
  while [ "$1" != -- ]; do
    env+=("$1")
    shift
  done
  shift
  log=$scratch/log
  : >"$log"
  # process 1 of its namespace: what it is told by signals is what the pooler is told
  VOLUMES="${volumes[*]:-}" TMPFS="${tmpfs[*]:-}" unshare --mount --pid --fork --kill-child --uts --ipc --propagation private \
    "$PWD/scripts/image-test.sh" --container "$scratch/$image" "$scratch/mount" "$user" "${env[@]}" -- "$@" >"$log" 2>&1 </dev/null &
  outside=$!
  wait_for "the container" found_container
}

# Inside: mounts the file system read-only and becomes the command.
become_container() {
  local root=$2 user=$3 env=() volume
  mount --bind "$1" "$root"
  shift 3
  while [ "$1" != -- ]; do
    env+=("$1")
    shift
  done
  shift
  for volume in $VOLUMES; do mount --bind "${volume%%:*}" "$root${volume##*:}"; done
  mount -o remount,bind,ro "$root"
  for volume in $VOLUMES; do [ -d "${volume%%:*}" ] || mount -o remount,bind,ro "$root${volume##*:}"; done
  for volume in $TMPFS; do mount -t tmpfs -o mode=1777 tmpfs "$root$volume"; done
  mount -t proc proc "$root/proc"
  mount -t tmpfs -o mode=755 tmpfs "$root/dev"
  for volume in null zero urandom; do
    touch "$root/dev/$volume"
    mount --bind "/dev/$volume" "$root/dev/$volume"
  done
  exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "${env[@]}" \
    setpriv --no-new-privs --bounding-set=-all,+setuid,+setgid,+sys_chroot \
    chroot --userspec="$user" --groups= "$root" "$@"
}

# A program in the running container, as `kubectl exec` and lifecycle hooks start it.
inside() {
  nsenter --target "$container" --mount --pid chroot --userspec="$1" "$scratch/mount" "${@:2}"
}

# The container ends by a signal, with this exit code.
stop() {
  local status=0
  kill "-$1" "$container"
  timeout "$TIMEOUT" tail --pid="$outside" -f /dev/null || fail "the container does not end"
  wait "$outside" || status=$?
  outside=
  [ "$status" = "${2:-0}" ] || fail "exit code $status instead of ${2:-0}"
}

up() {
  wait_for "the pooler" grep -q 'LOG process up: ' "$log"
  [ "$(cat "/proc/$container/comm")" = pgbouncer ] || fail "process 1 is called $(cat "/proc/$container/comm")"
  ! grep -qE ' (WARNING|ERROR|FATAL) ' "$log" || fail "a warning"
}

# Does a query through the pooler: query PORT DATABASE [OPTIONS]
query() {
  local found
  found=$(PGPASSWORD=${PASSWORD-secret} psql -X -At "host=127.0.0.1 port=$1 user=${USER_NAME-app} dbname=$2 ${3:-}" -c 'SELECT 6 * 7') ||
    fail "no answer"
  [ "$found" = 42 ] || fail "the answer is $found"
}

# PostgreSQL runs a query with this word.
query_runs() {
  PGPASSWORD=secret psql -X -At -h 127.0.0.1 -p $PG_PORT -U postgres postgres \
    -c "SELECT 1 FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE '%$1%' AND state = 'active'" | grep -q 1
}

# A probe that connects and says nothing leaves no line in the log.
probe() {
  local before
  # the end of an earlier query may come late
  before=$(grep -vc 'client close request' "$log")
  exec {socket}<>"/dev/tcp/127.0.0.1/$1"
  exec {socket}>&-
  sleep 0.3
  [ "$(grep -vc 'client close request' "$log")" = "$before" ] || fail "the probe is in the log: $(tail -n 1 "$log")"
}

reloads() {
  wait_for "the reload" grep -q "$1" "$log"
}

# A folder for files of the next container.
new_folder() {
  folder=$(mktemp -d "$scratch/volume.XXXX")
  chmod 755 "$folder"
}

# ---- scenarios --------------------------------------------------------------------------------------------------------

edoburu() {
  new_folder
  printf 'secret\n' >"$folder/password"
  volumes=("$folder/password:/etc/pgbouncer/password")
  touch "$scratch/small/etc/pgbouncer/password"
  start small 12345:12345 DB_HOST=127.0.0.1 DB_PORT=$PG_PORT DB_USER=app DB_PASSWORD_FILE=/etc/pgbouncer/password \
    AUTH_TYPE=scram-sha-256 POOL_MODE=transaction LISTEN_PORT=6001 -- /usr/bin/tsbouncer-entrypoint pgbouncer /etc/pgbouncer/pgbouncer.ini
  up
  query 6001 app
  probe 6001
  kill -HUP "$container"
  reloads 'got SIGHUP, re-reading config'
  query 6001 postgres
  stop TERM
}

# The same with a URL and that image's defaults, as any user and group 0, as on OpenShift.
url() {
  start small 1000650000:0 DATABASE_URL=postgres://other:hidden@127.0.0.1:$PG_PORT/app \
    -- /usr/bin/tsbouncer-entrypoint pgbouncer /etc/pgbouncer/pgbouncer.ini
  up
  USER_NAME=other PASSWORD=hidden query 5432 app
  stop TERM
}

# An ini of that image, which names the user of that image.
mounted() {
  new_folder
  printf '[databases]\n* = host=127.0.0.1 port=%s auth_user=app\n[pgbouncer]\nlisten_addr = 0.0.0.0\nlisten_port = 6008
unix_socket_dir =\nuser = postgres\nauth_file = /etc/pgbouncer/userlist.txt\nauth_type = md5\n' $PG_PORT >"$folder/pgbouncer.ini"
  echo '"app" "secret"' >"$folder/userlist.txt"
  volumes=("$folder:/etc/pgbouncer")
  start small 70:70 -- /usr/bin/tsbouncer-entrypoint /usr/bin/pgbouncer /etc/pgbouncer/pgbouncer.ini
  up
  query 6008 app
  stop INT
}

# A container that is started as root gives up root.
root() {
  start small 0:0 DB_HOST=127.0.0.1 DB_PORT=$PG_PORT DB_USER=app DB_PASSWORD=secret AUTH_TYPE=plain LISTEN_PORT=6002 \
    -- /usr/bin/tsbouncer-entrypoint
  up
  [ "$(stat -c %u "/proc/$container")" = 998 ] || fail "the pooler runs as $(stat -c %u "/proc/$container")"
  query 6002 app
  kill -HUP "$container"
  reloads 'got SIGHUP, re-reading config'
  ! grep -q ERROR "$log" || fail "the reload cannot read the files"
  stop INT
}

bitnami() {
  local env=(POSTGRESQL_HOST=127.0.0.1 POSTGRESQL_USERNAME=app POSTGRESQL_PASSWORD=secret PGBOUNCER_DATABASE=app
    PGBOUNCER_PORT=6003 PGBOUNCER_INIT_SLEEP_TIME=1 PGBOUNCER_DSN_0="other=host=127.0.0.1 port=$PG_PORT dbname=postgres")
  # the server comes later: a relay to it
  start small 1001:0 "${env[@]}" POSTGRESQL_PORT=5999 -- /usr/bin/tsbouncer-entrypoint
  wait_for "the wait for the server" grep -q 'waiting for 127.0.0.1:5999' "$log"
  stop TERM
  start small 1001:0 "${env[@]}" POSTGRESQL_PORT=5999 PGBOUNCER_INIT_MAX_RETRIES=2 -- /usr/bin/tsbouncer-entrypoint
  ended 1 '127.0.0.1:5999 does not accept connections'
  start small 1001:0 "${env[@]}" POSTGRESQL_PORT=$PG_PORT PGBOUNCER_EXTRA_FLAGS=-v -- /usr/bin/tsbouncer-entrypoint
  up
  query 6003 app
  query 6003 other
  stop TERM

  # files in that image's volume: a list of users, then an ini with that image's paths too
  new_folder
  echo '"third" "seen"' >"$folder/userlist.txt"
  volumes=("$folder:/bitnami/pgbouncer/conf")
  start small 1001:0 "${env[@]}" POSTGRESQL_PORT=$PG_PORT PGBOUNCER_AUTH_TYPE=plain -- /usr/bin/tsbouncer-entrypoint
  up
  USER_NAME=third PASSWORD=seen query 6003 app
  stop TERM
  printf '[databases]\n* = host=127.0.0.1 port=%s\n[pgbouncer]\nlisten_addr = 0.0.0.0\nlisten_port = 6009\nauth_type = plain
auth_file = /opt/bitnami/pgbouncer/conf/userlist.txt\npidfile = /opt/bitnami/pgbouncer/tmp/pgbouncer.pid\n' $PG_PORT >"$folder/pgbouncer.ini"
  tmpfs=(/tmp /opt/bitnami/pgbouncer/tmp)
  start small 1001:0 -- /usr/bin/tsbouncer-entrypoint
  up
  USER_NAME=third PASSWORD=seen query 6009 app
  stop TERM
}

cloudnativepg() {
  new_folder
  mkdir "$folder/configs" "$folder/run"
  chown 998:998 "$folder/run"
  cat >"$folder/configs/pgbouncer.ini" <<-INI
	[databases]
	* = host=127.0.0.1 port=$PG_PORT
	[pgbouncer]
	pool_mode = session
	auth_user = app
	auth_query = SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename=\$1
	auth_dbname = app
	auth_type = hba
	auth_hba_file = /controller/configs/pg_hba.conf
	auth_file = /controller/configs/userlist.txt
	admin_users = pgbouncer
	ignore_startup_parameters = extra_float_digits,options
	listen_addr = *
	listen_port = 6004
	log_stats = 0
	unix_socket_dir = /controller/run
	INI
  echo '"app" "secret"' >"$folder/configs/userlist.txt"
  printf 'local pgbouncer pgbouncer peer\nhost all all 0.0.0.0/0 md5\n' >"$folder/configs/pg_hba.conf"
  volumes=("$folder:/controller")
  start small 998:998 -- /usr/bin/pgbouncer /controller/configs/pgbouncer.ini
  up
  probe 6004
  query 6004 app
  # its manager: the same user, over the socket, without a password
  for command in PAUSE RESUME RELOAD; do
    setpriv --reuid=998 --regid=998 --clear-groups psql -X "host=$folder/run port=6004 user=pgbouncer dbname=pgbouncer" -c "$command" >/dev/null ||
      fail "$command"
  done
  stop INT
}

pgo() {
  new_folder
  cat >"$folder/~postgres-operator.ini" <<-INI
	[pgbouncer]
	%include /etc/pgbouncer/pgbouncer.ini

	[pgbouncer]
	auth_file = /etc/pgbouncer/~postgres-operator/users.txt
	auth_type = md5
	conffile = /etc/pgbouncer/~postgres-operator.ini
	listen_addr = *
	listen_port = 6005
	unix_socket_dir =

	[databases]
	* = host=127.0.0.1 port=$PG_PORT

	[users]
	INI
  mkdir "$folder/~postgres-operator"
  echo '"app" "secret"' >"$folder/~postgres-operator/users.txt"
  touch "$folder/pgbouncer.ini"
  volumes=("$folder:/etc/pgbouncer")
  start full 26:26 -- sh -c -- 'exec "$@"' -- pgbouncer '/etc/pgbouncer/~postgres-operator.ini'
  up
  query 6005 app
  # the side container shares the processes
  inside 26:26 /usr/bin/bash -ceu 'pkill -HUP --exact pgbouncer'
  reloads 'got SIGHUP, re-reading config'
  stop TERM
}

zalando() {
  new_folder
  start small 100:101 PGHOST=127.0.0.1 PGPORT=$PG_PORT PGUSER=app PGSCHEMA=pooler PGPASSWORD=secret \
    CONNECTION_POOLER_MODE=transaction CONNECTION_POOLER_PORT=6006 CONNECTION_POOLER_DEFAULT_SIZE=5 \
    CONNECTION_POOLER_RESERVE_SIZE=1 CONNECTION_POOLER_MAX_CLIENT_CONN=100 CONNECTION_POOLER_MAX_DB_CONN=10 \
    -- /usr/bin/tsbouncer-entrypoint
  up
  query 6006 app
  # a user whom only the lookup knows
  USER_NAME=other PASSWORD=hidden query 6006 app
  stop TERM
}

airflow() {
  new_folder
  printf '[databases]\nmetadata = host=127.0.0.1 port=%s dbname=app\n[pgbouncer]\npool_mode = transaction\nlisten_port = 6007
listen_addr = *\nauth_type = md5\nauth_file = /etc/pgbouncer/users.txt\nstats_users = app\n
ignore_startup_parameters = extra_float_digits\n' $PG_PORT >"$folder/pgbouncer.ini"
  echo '"app" "secret"' >"$folder/users.txt"
  touch "$scratch/full/etc/pgbouncer/pgbouncer.ini" "$scratch/full/etc/pgbouncer/users.txt"
  volumes=("$folder/pgbouncer.ini:/etc/pgbouncer/pgbouncer.ini" "$folder/users.txt:/etc/pgbouncer/users.txt")
  start full 65534:65534 -- pgbouncer -u nobody /etc/pgbouncer/pgbouncer.ini
  up
  probe 6007
  query 6007 metadata
  # its preStop hook; Kubernetes sends TERM afterwards
  inside 65534:65534 /usr/bin/killall -INT pgbouncer
  timeout "$TIMEOUT" tail --pid="$outside" -f /dev/null || fail "the container does not end"
  rm "$scratch/full/etc/pgbouncer/"*
}

# The Helm chart: test/packaging/render makes its manifests.
chart() {
  new_folder
  (cd test/packaging/render && GO111MODULE=off GOPATH=/usr/share/gocode go build -o "$scratch/render" .)
  echo "{databases: {'*': host=127.0.0.1 port=$PG_PORT}, auth: {users: {app: secret}}, drain: {timeout: 20}}" >"$folder/values.yaml"
  "$scratch/render" packaging/helm/tsbouncer "$folder/values.yaml" | node -e '
    const { parseAllDocuments } = require("yaml");
    const { readFileSync, writeFileSync } = require("node:fs");
    for (const document of parseAllDocuments(readFileSync(0, "utf8"))) {
      const { kind, data } = document.toJS() ?? {};
      const encoding = { ConfigMap: "utf8", Secret: "base64" }[kind];
      for (const name in encoding ? data : {}) writeFileSync(`${process.argv[1]}/${name}`, data[name], encoding);
    }' "$folder"
  chown 0:998 "$folder"/*
  chmod 0440 "$folder"/*
  volumes=("$folder:/etc/pgbouncer")
  start small 998:998 -- /usr/bin/tsbouncer-entrypoint pgbouncer /etc/pgbouncer/pgbouncer.ini
  up
  query 6432 app
  for path in livez readyz; do node -e 'fetch(process.argv[1]).then((r) => process.exit(r.ok ? 0 : 1))' "http://127.0.0.1:9127/$path"; done
  # it waits for a transaction, and disconnects the client at its end
  PGPASSWORD=secret psql -X -At "host=127.0.0.1 port=6432 user=app dbname=app" -c 'BEGIN; SELECT pg_sleep(2); SELECT 6 * 7; COMMIT' \
    >"$folder/answer" &
  wait_for "a transaction" query_runs pg_sleep
  stop TERM
  wait $!
  grep -qx 42 "$folder/answer" || fail "the transaction was interrupted"
}

# The container has ended by itself with this code and reason.
ended() {
  local status=0
  timeout "$TIMEOUT" tail --pid="$outside" -f /dev/null || fail "the container does not end"
  wait "$outside" || status=$?
  outside=
  [ "$status" = "$1" ] || fail "exit code $status instead of $1"
  grep -qF "$2" "$log" || fail "the reason is missing: $2"
}

refusals() {
  tmpfs=()
  start small 12345:12345 DB_HOST=127.0.0.1 -- /usr/bin/tsbouncer-entrypoint
  ended 1 'the config can be written neither to /etc/pgbouncer'
  tmpfs=(/tmp)
  start small 12345:12345 -- /usr/bin/tsbouncer-entrypoint
  ended 1 'there is no /etc/pgbouncer/pgbouncer.ini: mount one'
  start small 12345:12345 DB_HOST=127.0.0.1 DB_USER=app DB_PASSWORD=$'x"\n"eve" "y' -- /usr/bin/tsbouncer-entrypoint
  ended 1 'DB_PASSWORD: a line break or NUL is not allowed'
  start small 12345:12345 -- /usr/bin/tsbouncer-entrypoint sh
  ended 1 'this image starts only pgbouncer'
}

if [ "${1:-}" = --container ]; then
  shift
  become_container "$@"
fi

# ---- outside ----------------------------------------------------------------------------------------------------------

[ "$(id -u)" = 0 ] || fail "only root can start a container"
for program in unshare nsenter setpriv psql pgrep openssl ip ldd pkill killall go; do
  command -v "$program" >/dev/null || fail "this machine has no $program"
done
bin=${PG_BIN:-$(find /usr/lib/postgresql -maxdepth 2 -name bin | sort -V | tail -n 1)}
[ -x "$bin/initdb" ] || fail "this machine has no PostgreSQL"
if [ -z "${IMAGE_NETWORK:-}" ]; then
  unshare --mount --pid --fork --net true || fail "this machine allows no namespaces"
  # its own network: the ports of the images are free there
  IMAGE_NETWORK=yes exec unshare --net --mount --propagation private "$0" "$@"
fi
ip link set lo up

scratch=$(mktemp -d)
chmod 755 "$scratch"
outside=
cleanup() {
  [ -z "$outside" ] || kill -KILL "$outside" 2>/dev/null || true
  [ ! -f "$scratch/data/postmaster.pid" ] || as_server "$bin/pg_ctl" -D "$scratch/data" -m immediate stop >/dev/null || true
  rm -rf "$scratch"
}
trap cleanup EXIT

as_server() {
  (cd / && runuser -u nobody -- "$@")
}

echo "--- file systems and a server"
mkdir "$scratch/mount" "$scratch/data"
make_small "$scratch/small"
make_full "$scratch/full"
du -sh "$scratch/small" | cut -f 1
chown nobody "$scratch/data"
echo secret >"$scratch/password"
as_server "$bin/initdb" -D "$scratch/data" -U postgres -A md5 --pwfile="$scratch/password" >/dev/null
as_server openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout "$scratch/data/server.key" \
  -out "$scratch/data/server.crt" 2>/dev/null
as_server chmod 600 "$scratch/data/server.key"
as_server "$bin/pg_ctl" -D "$scratch/data" -w -l "$scratch/data/log" -o "-p $PG_PORT -k $scratch/data -c ssl=on -c listen_addresses=127.0.0.1" start >/dev/null
PGPASSWORD=secret psql -X -q -h 127.0.0.1 -p $PG_PORT -U postgres postgres <<'SQL'
CREATE ROLE app LOGIN SUPERUSER PASSWORD 'secret';
CREATE DATABASE app;
SET password_encryption = md5;
CREATE ROLE other LOGIN PASSWORD 'hidden';
RESET password_encryption;
CREATE ROLE third LOGIN PASSWORD 'seen';
CREATE SCHEMA pooler;
CREATE FUNCTION pooler.user_lookup(in name text, out uname text, out phash text) LANGUAGE sql SECURITY DEFINER
  AS 'SELECT usename::text, passwd::text FROM pg_catalog.pg_shadow WHERE usename = name';
SQL

[ $# -gt 0 ] || set -- "${SCENARIOS[@]}"
for scenario; do
  echo "--- $scenario"
  volumes=()
  tmpfs=(/tmp)
  "$scenario"
done
echo "--- all scenarios are done"
