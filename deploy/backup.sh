#!/bin/sh
# backup.sh STORE TARGET: the bundle that is CURRENT and the LMDB user store, while servers run and record plays.
# TARGET is a store: `lhydra serve TARGET` serves it. It appears whole or not at all.
set -eu
store=$1 target=$2 partial=$2.partial
if [ -e "$target" ] || [ -e "$partial" ]; then
    echo "backup.sh: found $target or $partial, expected neither" >&2
    exit 1
fi
mkdir "$partial"
trap 'rm -rf "$partial"' EXIT
bundle=$(cat "$store/CURRENT")
cp -R "$store/$bundle" "$partial/$bundle" # a published bundle never changes
printf '%s\n' "$bundle" >"$partial/CURRENT"
python -m lmdb -e "$store/users.lmdb" copy "$partial/users.lmdb" # one moment of it, though others write meanwhile
lhydra index verify --store "$partial" "$bundle" >/dev/null
sync
mv "$partial" "$target"
