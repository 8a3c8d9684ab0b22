#!/usr/bin/env bash
# Runs the README's two commands on a machine that has Node, python3, make and g++, but no PostgreSQL and no PgBouncer.
#
#     scripts/fresh-machine.sh [USER [TEST ...]]
#
# Simulates such a machine: hides everything that a fresh machine lacks in a mount namespace, which needs root. The
# commands run as USER (default: root); the second may be limited to some tests. Fails if a program is not hidden, if a
# test fails, or if no test is skipped for lack of a program, because then nothing was hidden.
set -euo pipefail
cd "$(dirname "$0")/.."

# optional programs that tests use
HIDDEN=(
  psql pgbench pg_ctl pg_config pg_dump pg_isready pg_basebackup pg_recvlogical initdb postgres pg_ctlcluster
  pgbouncer slapd slapadd ldapadd ldapsearch ldapmodify ldapwhoami socat openssl ss mandoc groff man go
)
# folders that are empty on a fresh machine
EMPTY=(/usr/lib/postgresql /usr/share/postgresql /etc/ldap/schema)
# where Python finds psycopg; an empty folder would still be a module
MODULES=/usr/lib/python3/dist-packages
PLACES=(/usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin)

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

if [ -z "${FRESH_SCRATCH:-}" ]; then
  [ "$(id -u)" = 0 ] || fail "only root can hide what this machine has"
  unshare --mount --propagation private true || fail "this machine allows no mount namespace"
  scratch=$(mktemp -d)
  status=0
  FRESH_SCRATCH=$scratch unshare --mount --propagation private "$0" "$@" || status=$?
  rmdir "$scratch"
  exit "$status"
fi

runner=${1:-root}
tests=("${@:2}")
scratch=$FRESH_SCRATCH
unset PG_BIN PGBOUNCER_BIN FRESH_SCRATCH TEST_SKIPS NODE_TEST_CONTEXT
mount -t tmpfs tmpfs "$scratch"
chmod 755 "$scratch"

# Mounts a layer over a folder, so that files are removed in this namespace only.
declare -A layered=()
layer() {
  [ -z "${layered[$1]:-}" ] || return 0
  local upper=$scratch/layer${#layered[@]}
  mkdir "$upper" "$upper.work"
  mount -t overlay overlay -o "lowerdir=$1,upperdir=$upper,workdir=$upper.work" "$1"
  layered[$1]=yes
}

IFS=: read -r -a path <<<"$PATH"
for folder in "${path[@]}" "${PLACES[@]}"; do
  [ -d "$folder" ] || continue
  folder=$(realpath "$folder")
  for program in "${HIDDEN[@]}"; do
    [ -e "$folder/$program" ] || [ -L "$folder/$program" ] || continue
    layer "$folder"
    rm "$folder/$program"
  done
done
if compgen -G "$MODULES/psycopg*" >/dev/null; then
  layer "$MODULES"
  rm -r "$MODULES"/psycopg*
fi
for folder in "${EMPTY[@]}"; do
  [ ! -d "$folder" ] || mount -t tmpfs -o mode=755 tmpfs "$folder"
done

hash -r
for program in "${HIDDEN[@]}"; do
  ! command -v "$program" >/dev/null || fail "$program is still there: $(command -v "$program")"
done
for folder in "${EMPTY[@]}"; do
  [ ! -d "$folder" ] || [ -z "$(ls -A "$folder")" ] || fail "$folder is not empty"
done
! /usr/bin/python3 -c 'import psycopg' 2>/dev/null || fail "python3 still has psycopg"
for program in node npm python3 make g++; do
  command -v "$program" >/dev/null || fail "$program is hidden too"
done
echo "hidden: ${HIDDEN[*]}, psycopg, and all in ${EMPTY[*]}"

# committed files and files to be committed, without build results
copy=$scratch/tsbouncer
mkdir "$copy"
git ls-files -z --cached --others --exclude-standard | tar -c --null -T - | tar -x -C "$copy"
chown -R "$runner" "$copy"
cd "$copy"

# npm's folders of the user that runs this script, as `npm run` passes them on
unset npm_config_cache npm_config_userconfig npm_config_init_module npm_config_local_prefix

as_runner() {
  if [ "$runner" = root ]; then "$@"; else runuser -u "$runner" -- env HOME="$copy" "$@"; fi
}

# runs exactly the commands in the README
for ending in 'npm run demo' 'npm test'; do
  line=$(grep -m1 "^npm ci .*$ending\$" README.md) || fail "the README has no line that ends with '$ending'"
  [ "$ending" = 'npm test' ] || line="$line -- --once"
  [ "$ending" != 'npm test' ] || [ ${#tests[@]} -eq 0 ] || line="$line -- ${tests[*]}"
  echo "$runner: $line"
  as_runner bash -euo pipefail -c "$line" </dev/null 2>&1 | tee "$scratch/output"
done
grep -q '^ℹ fail 0$' "$scratch/output" || fail "the tests do not say that none failed"
! grep -q '^ℹ skipped 0$' "$scratch/output" || fail "no test lacked anything: nothing was hidden"
