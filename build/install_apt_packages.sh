#!/bin/sh
# Installs the packages of apt-packages.txt that are missing; silent and quick when there is nothing to do.
set -eu
cd "$(dirname "$0")"

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "This set-up knows Debian and Ubuntu only. Install the equivalents of these by hand, then run make with" >&2
    echo "SKIP_PACKAGES=1:" >&2
    cat apt-packages.txt >&2
    exit 1
fi

wanted=$(sed 's/#.*//' apt-packages.txt)

missing=
for package in $wanted; do
    state=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    as_root="env DEBIAN_FRONTEND=noninteractive"
elif command -v sudo >/dev/null; then
    as_root="sudo env DEBIAN_FRONTEND=noninteractive"
else
    echo "These packages are missing and there is no sudo here. As root, run:" >&2
    echo "    apt-get update && apt-get install --no-install-recommends$missing" >&2
    exit 1
fi

log=../.cache/apt.log
mkdir -p ../.cache
echo "Installing packages:$missing"
# Word splitting is wanted: both hold several words.
# shellcheck disable=SC2086
if ! { $as_root apt-get update && $as_root apt-get install --yes --no-install-recommends $missing; } \
    </dev/null >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "apt-get failed; the whole log is .cache/apt.log" >&2
    exit 1
fi
