#!/usr/bin/env bash
# The package in the oldest and the newest Python that is to be had here: `bash tests/pythons.sh FOLDER`.
# FOLDER gets an environment for each, and keeps it; with PYTHONS=FOLDER the tests find them there.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p "$1"
for python in $(python3 tests/test_pythons.py); do
    venv=$1/$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    [ -d "$venv" ] || "$python" -m venv "$venv"
    "$venv/bin/pip" install -q $(sed -n 's/^requirements *= *//p' settings.ini)
done
