#!/usr/bin/env bash
# The tests on the oldest versions that settings.ini admits, but those of the notebooks, the site and the release:
# `bash tests/oldest.sh FOLDER [PYTEST'S ARGUMENTS]`. FOLDER gets the environment, and keeps it for the next time.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
oldest=$(sed -n 's/^requirements *= *//p' settings.ini | sed 's/>=/==/g')
[ -d "$venv" ] || python3 -m venv "$venv"
"$venv/bin/pip" install -q -e . $oldest pytest 'pytest-xdist>=3.8' hypothesis
"$venv/bin/pip" list 2>/dev/null | grep -E '^(fastai|fastcore|numpy|torch|torchvision) '
export OMP_NUM_THREADS=1
"$venv/bin/python" -m pytest --ignore tests/test_project.py --ignore tests/test_site.py --ignore tests/test_package.py "${@:2}"
