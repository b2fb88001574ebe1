#!/bin/sh
# Writes both lock files anew from pyproject.toml: every package with its version and hashes, and no index address,
# so that whichever index or mirror pip is configured for is used. Run it as `make -C build lock`.
set -eu
cd "$(dirname "$0")/.."

# uv resolves for all platforms and Python versions at once, which pip cannot. It is a tool of this script alone.
resolver=.cache/uv
[ -x "$resolver/bin/uv" ] || { "${PYTHON:-python3}" -m venv "$resolver" && "$resolver/bin/pip" --quiet install uv; }

lock() {  # lock FILE SOURCE...
    output=$1
    shift
    "$resolver/bin/uv" pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-header --no-annotate --output-file "$output.new" "$@"
    { echo "# Made by 'make -C build lock'; do not edit."; cat "$output.new"; } >"$output"
    rm "$output.new"
}

# The build backend is locked too, with what it wants for an editable installation: hostagent itself is installed
# without build isolation, hence without a download.
{ sed -n 's/^requires = \["\([^"]*\)".*/\1/p' pyproject.toml; echo editables; } |
    lock build/requirements-host.txt pyproject.toml - --group dev
lock build/requirements-guestagent.txt --group guestagent
