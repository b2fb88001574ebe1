#!/bin/sh
# Makes .venv with the locked packages and an editable hostagent; silent and quick when that is what is there.
set -eu
cd "$(dirname "$0")/.."

# The key stands inside .venv, so that it goes when the venv goes.
key=$({ cat build/requirements-host.txt pyproject.toml build/install_venv.sh; pwd; "$PYTHON" -VV; } | sha256sum)
stamp=.venv/.installed
[ "$(cat "$stamp" 2>/dev/null)" = "$key" ] && exit 0

log=.cache/venv.log
mkdir -p .cache
failed() {
    tail -n 20 "$log" >&2
    echo "The Python packages could not be installed; the whole log is $log" >&2
    exit 1
}

echo "Installing Python packages into .venv"
: >"$log"
# A venv of another Python, or one whose Python is gone, is made anew.
version='import sys; print(sys.version_info[:2])'
if [ "$(.venv/bin/python -c "$version" 2>/dev/null)" != "$("$PYTHON" -c "$version")" ]; then
    "$PYTHON" -m venv --clear .venv >>"$log" 2>&1 || failed
fi
pip="env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m pip --disable-pip-version-check --no-input"
$pip install --compile --require-hashes --requirement build/requirements-host.txt </dev/null >>"$log" 2>&1 || failed
# Without isolation the build backend is the locked one, so nothing is downloaded unchecked.
$pip install --no-deps --no-build-isolation --editable . </dev/null >>"$log" 2>&1 || failed
echo "$key" >"$stamp"
