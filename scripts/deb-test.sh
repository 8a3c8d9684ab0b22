#!/usr/bin/env bash
# Installs, upgrades, removes and purges the Debian packages beside a running PgBouncer, with a client that stays connected
# and a hundred that run one transaction after another.
# Needs root, dpkg, systemd, and Debian's packages postgresql and pgbouncer; shellcheck and lintian check the packages.
#
#     scripts/deb-test.sh [SCENARIO ...]     the default is all of them
#
# Each scenario has a machine of its own, in namespaces: what this machine has installed, with a layer over it, in which
# systemd runs as process 1. Nothing that happens there is left. The scenario "bare" has no systemd.
set -euo pipefail
cd "$(dirname "$0")/.."

SCENARIOS=(swap alone direct disabled back bare)
LATER=9.0
CROWD=100
CROWD_PID=
# what would start on this machine, and what would change the kernel of the machine outside
MASKED=(tmp.mount systemd-sysctl.service systemd-modules-load.service systemd-udevd.service systemd-udev-trigger.service
  systemd-remount-fs.service systemd-random-seed.service slapd.service cron.service getty.target)
INI=/etc/pgbouncer/pgbouncer.ini

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

is_active() {
  systemctl is-active --quiet "$1"
}

# ---- inside the machine -----------------------------------------------------------------------------------------------

# A client of the pooler, with a temporary table: only its own server connection has that.
connect() {
  coproc CLIENT { psql -X -At -h 127.0.0.1 -p 6432 -U postgres postgres 2>&1; }
  ask "CREATE TEMP TABLE mine AS SELECT 42 AS answer;"
  ask "SELECT answer, pg_backend_pid() FROM mine;"
  [[ $answer == 42\|* ]] || fail "the client got: $answer"
  session=$answer
}

# Sets `answer` to the first line that a statement returns.
ask() {
  echo "$1" >&"${CLIENT[1]}"
  read -t 20 -r answer <&"${CLIENT[0]}" || fail "the client got no answer to: $1"
}

# The client has its session and has not noticed anything.
still_connected() {
  ask "SELECT answer, pg_backend_pid() FROM mine;"
  [ "$answer" = "$session" ] || fail "$1: the client got '$answer' instead of '$session'"
  echo "connected: $1"
  [ -z "$CROWD_PID" ] || crowd_goes_on "$1"
}

# A hundred clients, each nearly always in a transaction. pgbench ends a client at its first error, and says so.
crowd_comes() {
  local pgbench=(/usr/lib/postgresql/*/bin/pgbench)
  printf 'BEGIN;\nSELECT 1;\nSELECT pg_sleep(0.05);\nSELECT 2;\nCOMMIT;\n' >/tmp/crowd.sql
  "${pgbench[0]}" --no-vacuum --client=$CROWD --jobs=2 --time=600 --progress=1 --file=/tmp/crowd.sql \
    -h 127.0.0.1 -p 6432 -U postgres crowd >/tmp/crowd.log 2>&1 &
  CROWD_PID=$!
  crowd_goes_on "the beginning"
}

# None of them has had an error, and all run transactions.
crowd_goes_on() {
  local lines
  lines=$(grep -c '^progress' /tmp/crowd.log || true)
  # the first line may be about the time before
  timeout 20 sh -c "until [ \$(grep -c '^progress' /tmp/crowd.log) -ge $((lines + 2)) ]; do sleep 0.1; done" ||
    fail "$1: the crowd stands still: $(tail -n 5 /tmp/crowd.log)"
  ! grep -iE 'abort|error|fatal|failed,? [1-9]' /tmp/crowd.log || fail "$1: clients of the crowd had errors"
  tail -n 1 /tmp/crowd.log | grep -qE ' [1-9][0-9.]* tps' || fail "$1: the crowd runs no transactions"
  echo "a crowd of $CROWD: $1"
}

# A pooler that is told to end waits for its clients' sessions.
disconnect() {
  local pid
  for pid in $CLIENT_PID $CROWD_PID; do
    kill "$pid"
    wait "$pid" || true
  done
  CROWD_PID=
}

# The process that serves a port is that of a unit and runs this version.
serves() {
  local pid
  pid=$(systemctl show --property=MainPID --value "$1")
  is_active "$1" && [ "$pid" != 0 ] || fail "$1 is not active"
  grep -q "^$pid\$" "/sys/fs/cgroup/system.slice/$1/cgroup.procs" || fail "process $pid is outside of $1"
  [ "$(wc -l <"/sys/fs/cgroup/system.slice/$1/cgroup.procs")" = 1 ] || fail "$1 has more than one process"
  [ "$(cat "/proc/$pid/comm")" = "$2" ] || fail "the process of $1 is called $(cat "/proc/$pid/comm")"
  [ ! -d "/run/systemd/system/$1.d" ] || fail "settings of the reboot are left"
}

main_pid() {
  systemctl show --property=MainPID --value "$1"
}

# Patterns of packages that were made for this test.
apt_install() {
  local files=() name
  # shellcheck disable=SC2206
  for name; do files+=("$PACKAGES"/$name); done
  # apt must ask no question, because no user can answer
  apt-get install -qq "${files[@]}" </dev/null
}

user_of_pooler() {
  cat >>"$1" <<END
[databases]
postgres = host=/var/run/postgresql
crowd = host=/var/run/postgresql dbname=postgres pool_mode=transaction pool_size=$CROWD
END
  sed -i 's/^;*max_client_conn = .*/max_client_conn = 300/' "$1"
  echo '"postgres" "x"' >"${1%/*}/userlist.txt"
}

nothing_left() {
  local left
  left=$(find /etc /usr /var/lib /var/log /run -path /usr/share -prune -o -name '*tsbouncer*' -print \
    -path '/var/lib/dpkg' -prune -o -path '/var/log/journal' -prune)
  [ -z "$left" ] || fail "left behind: $left"
}

# The installed files that other programs read.
check_files() {
  local found unit
  for unit in tsbouncer.service tsbouncer.socket tsbouncer-takeover.service pgbouncer.service pgbouncer.socket; do
    found=$(systemd-analyze verify --man=no "$unit" 2>&1 | grep -E 'tsbouncer|pgbouncer' || true)
    [ -z "$found" ] || fail "$unit: $found"
    for page in $(systemctl show --property=Documentation --value "$unit" | grep -o '/usr/share/doc/[^ ]*'); do
      [ -f "$page" ] || fail "$unit names $page, which is not there"
    done
  done
  found=$(logrotate --debug /etc/logrotate.d/tsbouncer 2>&1) || fail "logrotate: $found"
  ! grep -i error <<<"$found" || fail "logrotate reports an error"
  for page in tsbouncer.1 tsbouncer.5 pgbouncer.1 pgbouncer.5; do
    found=$(MANROFFSEQ='' man --warnings --encoding=UTF-8 --local-file --troff-device=utf8 --ditroff \
      "/usr/share/man/man${page##*.}/$page.gz" 2>&1 >/dev/null) || fail "man: $found"
    [ -z "$found" ] || fail "$page: $found"
  done
}

# The way that install.md describes: the takeover first, the packages afterwards.
swap() {
  user_of_pooler "$INI"
  echo "# mine" >>"$INI"
  systemctl restart pgbouncer
  connect
  crowd_comes
  apt_install "tsbouncer_${VERSION}_*.deb"
  ! is_active tsbouncer || fail "the installation has started tsbouncer.service"
  systemctl start tsbouncer-takeover
  serves tsbouncer-takeover.service tsbouncer
  still_connected "after the takeover from PgBouncer"
  apt_install "tsbouncer-pgbouncer_${VERSION}_all.deb"
  serves pgbouncer.service pgbouncer
  check_files
  ! is_active tsbouncer-takeover || fail "two units are active"
  still_connected "after the package has replaced pgbouncer"
  pgbouncer -V | grep -qx "tsbouncer $VERSION" || fail "pgbouncer -V says: $(pgbouncer -V)"
  grep -qx '# mine' "$INI" || fail "the ini has changed"

  dpkg --purge pgbouncer
  grep -qx '# mine' "$INI" || fail "purging pgbouncer has removed the ini"
  [ "$(systemctl is-enabled pgbouncer)" = enabled ] || fail "purging pgbouncer has disabled the service"
  systemctl reload pgbouncer
  still_connected "after purging pgbouncer and a reload"

  local before
  before=$(main_pid pgbouncer)
  apt_install "tsbouncer_${LATER}_*.deb" "tsbouncer-pgbouncer_${LATER}_all.deb"
  serves pgbouncer.service pgbouncer
  [ "$(main_pid pgbouncer)" != "$before" ] || fail "the upgrade has left the old process"
  still_connected "after an upgrade"

  disconnect
  apt-get remove -qq tsbouncer-pgbouncer
  ! is_active pgbouncer || fail "the removed service is active"
  [ -f "$INI" ] || fail "removing has deleted the ini"
  [ ! -e /usr/sbin/pgbouncer ] || fail "removing has left the program"
  apt-get purge -qq tsbouncer-pgbouncer tsbouncer
  [ ! -e /etc/pgbouncer ] || fail "purging has left /etc/pgbouncer"
  nothing_left
}

# The package tsbouncer by itself.
alone() {
  local own=/etc/tsbouncer/tsbouncer.ini
  apt-get purge -qq pgbouncer
  apt_install "tsbouncer_${VERSION}_*.deb"
  ! is_active tsbouncer || fail "the installation has started tsbouncer.service"
  [ "$(stat -c '%a %U %G' "$own")" = '640 root postgres' ] || fail "$own may be read by others"
  user_of_pooler "$own"
  systemctl enable --now tsbouncer
  serves tsbouncer.service tsbouncer
  connect
  runuser -u postgres -- tsbouncer --check "$own"
  local before
  before=$(main_pid tsbouncer)
  logrotate --force /etc/logrotate.d/tsbouncer
  still_connected "after the log has been rotated"
  # the log of the reopened file begins with the next line
  until [ -f /var/log/tsbouncer/tsbouncer.log ]; do psql -X -h 127.0.0.1 -p 6432 -U postgres -c 'SELECT 1' postgres >/dev/null; done

  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
  chmod +x /usr/sbin/policy-rc.d
  apt_install "tsbouncer_${LATER}_*.deb"
  [ "$(main_pid tsbouncer)" = "$before" ] || fail "policy-rc.d was not asked"
  rm /usr/sbin/policy-rc.d
  /usr/lib/tsbouncer/online-reboot
  serves tsbouncer.service tsbouncer
  [ "$(main_pid tsbouncer)" != "$before" ] || fail "online-reboot has left the old process"
  still_connected "after online-reboot"

  # a new process that cannot start leaves the old one alone, and the package is installed all the same
  before=$(main_pid tsbouncer)
  cp "$own" "$own.good"
  echo 'nonsense' >>"$own"
  apt-get install -qq --reinstall "$PACKAGES"/tsbouncer_"$LATER"_*.deb </dev/null 2>&1 | tee /tmp/output
  grep -q 'could not be replaced' /tmp/output || fail "nothing was said about the ini"
  [ "$(main_pid tsbouncer)" = "$before" ] || fail "the process has changed"
  serves tsbouncer.service tsbouncer
  still_connected "after an upgrade with a wrong ini"
  mv "$own.good" "$own"

  disconnect
  apt-get remove -qq tsbouncer
  ! is_active tsbouncer || fail "the removed service is active"
  [ -f "$own" ] || fail "removing has deleted the ini"
  apt-get purge -qq tsbouncer
  nothing_left
}

# Without the takeover, the removal of pgbouncer stops its service, and the new one starts after that.
direct() {
  user_of_pooler "$INI"
  systemctl restart pgbouncer
  apt_install "tsbouncer_${VERSION}_*.deb" "tsbouncer-pgbouncer_${VERSION}_all.deb"
  serves pgbouncer.service pgbouncer
  [ "$(systemctl is-enabled pgbouncer)" = enabled ] || fail "the service is not enabled"
  connect
  still_connected "to the service that the installation has started"
}

# A service that the administrator has disabled stays so.
disabled() {
  systemctl disable --now pgbouncer
  apt_install "tsbouncer_${VERSION}_*.deb" "tsbouncer-pgbouncer_${VERSION}_all.deb"
  ! is_active pgbouncer || fail "the installation has started a disabled service"
  [ "$(systemctl is-enabled pgbouncer)" = disabled ] || fail "the installation has enabled the service"
  apt_install "tsbouncer_${LATER}_*.deb" "tsbouncer-pgbouncer_${LATER}_all.deb"
  ! is_active pgbouncer || fail "the upgrade has started a disabled service"
}

# Back to PgBouncer: before the second step by hand, after it by the package.
back() {
  user_of_pooler "$INI"
  systemctl restart pgbouncer
  connect
  crowd_comes
  apt_install "tsbouncer_${VERSION}_*.deb"
  cp -p "$INI" "$INI.good"
  echo nonsense >>"$INI"
  ! systemctl start tsbouncer-takeover || fail "the takeover has not noticed the wrong ini"
  mv "$INI.good" "$INI"
  serves pgbouncer.service pgbouncer
  still_connected "after a takeover that failed"
  systemctl start tsbouncer-takeover
  runuser -u postgres -- pgbouncer -R -d "$INI"
  timeout 20 sh -c 'while systemctl is-active --quiet tsbouncer-takeover; do sleep 0.1; done' || fail "tsbouncer still runs"
  [[ $(readlink "/proc/$(cat /var/run/postgresql/pgbouncer.pid)/exe") == */pgbouncer ]] || fail "PgBouncer does not run"
  still_connected "after the way back by -R"
  disconnect
  kill -INT "$(cat /var/run/postgresql/pgbouncer.pid)"
  timeout 20 sh -c 'while [ -f /var/run/postgresql/pgbouncer.pid ]; do sleep 0.1; done' || fail "PgBouncer does not end"
  systemctl start pgbouncer

  apt_install "tsbouncer-pgbouncer_${VERSION}_all.deb"
  serves pgbouncer.service pgbouncer
  apt_install "pgbouncer_*.deb"
  [[ $(readlink "/proc/$(main_pid pgbouncer)/exe") == /usr/sbin/pgbouncer ]] || fail "PgBouncer does not run"
  grep -q '^postgres = host' "$INI" || fail "the ini has changed"
  [ -z "$(dpkg-divert --list '/etc/pgbouncer/*')" ] || fail "diversions are left"
  connect
  still_connected "to PgBouncer, installed again"
}

# Without systemd, as in a chroot or a container.
bare() {
  local pidfile=/var/run/postgresql/pgbouncer.pid
  pg_ctlcluster "$(pg_lsclusters -h | awk '{print $1; exit}')" main start
  user_of_pooler "$INI"
  runuser -u postgres -- pgbouncer -d "$INI"
  connect
  crowd_comes
  apt_install "tsbouncer_${VERSION}_*.deb"
  runuser -u postgres -- tsbouncer -R -d "$INI"
  still_connected "after the takeover from PgBouncer"
  apt_install "tsbouncer-pgbouncer_${VERSION}_all.deb"
  still_connected "after the package has replaced pgbouncer"
  [ "$(cat "/proc/$(cat $pidfile)/comm")" = pgbouncer ] || fail "the process has the wrong name"
  local before
  before=$(cat $pidfile)
  # an upgrade of the package nodejs replaces the program; a space at the end of a value does not belong to it
  cp --dereference /usr/bin/node /usr/bin/node.new
  mv /usr/bin/node.new /usr/bin/node
  sed -i 's/^pidfile = .*/& /' "$INI"
  apt_install "tsbouncer_${LATER}_*.deb" "tsbouncer-pgbouncer_${LATER}_all.deb"
  [ "$(cat $pidfile)" != "$before" ] || fail "the upgrade has left the old process"
  still_connected "after an upgrade"
  disconnect
  apt-get purge -qq tsbouncer-pgbouncer tsbouncer
  [ ! -e $pidfile ] || fail "the removed pooler runs"
}

if [ "${1:-}" = --inside ]; then
  export APT_CONFIG=/packages/apt.conf PACKAGES=/packages VERSION=$3 LATER=$4 PGPASSWORD=x DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin
  cd /
  "$2"
  exit
fi

# ---- the machine ------------------------------------------------------------------------------------------------------

# Mounts what a machine has below $1, and continues there as process 1. Runs in namespaces of its own.
become_machine() {
  local root=$1/root file
  mkdir "$1/upper" "$1/work" "$root"
  mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$root"
  mount -t proc proc "$root/proc"
  mount -t sysfs -o ro sysfs "$root/sys"
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  mount -t tmpfs -o mode=755 tmpfs "$root/run"
  mount -t tmpfs -o mode=755 tmpfs "$root/dev"
  for file in null zero full random urandom tty; do
    touch "$root/dev/$file"
    mount --bind "/dev/$file" "$root/dev/$file"
  done
  ln -s /proc/self/fd "$root/dev/fd"
  mkdir -m 1777 "$root/dev/shm"
  mkdir "$root/dev/pts" "$root/packages"
  mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
  ln -s pts/ptmx "$root/dev/ptmx"
  # images of containers forbid services with it
  rm -f "$root/usr/sbin/policy-rc.d"
  for file in "$root"/etc/postgresql/*/main/conf.d; do echo 'max_connections = 200' >"$file/crowd.conf"; done
  for file in "${MASKED[@]}"; do ln -sf /dev/null "$root/etc/systemd/system/$file"; done
  cp "$scratch"/*.deb "$0" "$root/packages"
  echo 'Dpkg::Use-Pty "0";' >"$root/packages/apt.conf"
  [ -e "$root/usr/bin/node" ] || ln -s "$(command -v node)" "$root/usr/bin/node"
  ip link set lo up
  if [ "$2" = bare ]; then
    mkdir -p "$root/run/postgresql"
    chown postgres:postgres "$root/run/postgresql"
    exec env -i PATH=/usr/sbin:/usr/bin chroot "$root" /usr/bin/bash /packages/deb-test.sh --inside bare "$VERSION" "$LATER"
  fi
  exec env -i PATH=/usr/sbin:/usr/bin container=test chroot "$root" /lib/systemd/systemd --system --unit=multi-user.target --show-status=no
}

if [ "${1:-}" = --machine ]; then
  become_machine "$3" "$2"
fi

# ---- outside ----------------------------------------------------------------------------------------------------------

[ "$(id -u)" = 0 ] || fail "only root can install packages"
for program in dpkg-deb apt-get unshare nsenter psql systemctl logrotate ip; do
  command -v "$program" >/dev/null || fail "this machine has no $program"
done
for package in pgbouncer postgresql-common; do
  dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
    fail "the package $package is needed"
done
flags=(--mount --pid --fork --kill-child --cgroup --uts --ipc --net --propagation private)
unshare "${flags[@]}" true || fail "this machine allows no namespaces"

scratch=$(mktemp -d)
chmod 755 "$scratch"
export scratch VERSION
machine=

# Ends the machine and removes its control groups.
stop_machine() {
  [ -z "$machine" ] || kill -KILL "$machine" 2>/dev/null || true
  machine=
  unshare --mount --propagation private bash -euc '
    mount -t cgroup2 cgroup2 "$1"
    for try in 1 2 3 4 5; do
      find "$1$2" -depth -type d -exec rmdir {} + 2>/dev/null && exit || sleep 0.2
    done' - "$scratch/cgroup" "$group" 2>/dev/null || true
}

# Puts this process into a new control group, which is the root of those of the machine.
enter_group() {
  mount -t cgroup2 cgroup2 "$scratch/cgroup"
  mkdir -p "$scratch/cgroup$group"
  echo $$ >"$scratch/cgroup$group/cgroup.procs"
  umount "$scratch/cgroup"
}

run_scenario() {
  local place=$scratch/$1 log=$scratch/$1.log status=0 parent
  mkdir "$place"
  export -f enter_group
  unshare --mount --propagation private bash -euc '
    place=$1 self=$2 name=$3
    shift 3
    enter_group
    mount -t tmpfs tmpfs "$place"
    exec unshare "$@" "$self" --machine "$name" "$place"' - "$place" "$PWD/scripts/deb-test.sh" "$1" "${flags[@]}" \
    >"$log" 2>&1 </dev/null &
  parent=$!
  if [ "$1" = bare ]; then
    wait "$parent" || status=$?
    cat "$log"
  else
    machine=$(timeout 20 bash -c 'until pgrep -x systemd -P "$1"; do sleep 0.1; done' - "$parent") || {
      cat "$log"
      fail "systemd does not start"
    }
    inside() { nsenter --target "$machine" --all chroot "$place/root" "$@"; }
    inside timeout 60 sh -c 'until systemctl is-active multi-user.target pgbouncer postgresql >/dev/null 2>&1; do sleep 0.2; done' ||
      status=$?
    [ "$status" = 0 ] || cat "$log"
    [ "$status" != 0 ] ||
      inside timeout 240 bash /packages/deb-test.sh --inside "$1" "$VERSION" "$LATER" </dev/null || status=$?
    stop_machine
    wait "$parent" 2>/dev/null || true
  fi
  [ "$status" = 0 ] || fail "scenario $1"
}

trap 'stop_machine; rm -rf "$scratch"' EXIT
mkdir "$scratch/cgroup"
group=$(sed -n 's/^0:://p' /proc/self/cgroup)
group=${group%/}/tsbouncer-deb-test-$$
export group
VERSION=$(node -p 'require("./package.json").version')
echo "--- two versions of the packages"
node scripts/deb.mjs "$scratch"
node scripts/deb.mjs "$scratch" "$LATER"
(cd "$scratch" && apt-get download -q pgbouncer 2>&1 | grep -v unsandboxed)

echo "--- lintian, and the files that other programs read"
lintian --allow-root --fail-on error,warning "$scratch"/tsbouncer*_"$VERSION"_*.deb
shellcheck --severity=warning scripts/*.sh packaging/deb/online-reboot packaging/deb/*.postinst packaging/deb/*.pre* packaging/deb/*.postrm

[ $# -gt 0 ] || set -- "${SCENARIOS[@]}"
for scenario; do
  echo "--- $scenario"
  run_scenario "$scenario"
done
echo "--- all scenarios are done"
