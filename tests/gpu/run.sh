#!/usr/bin/env bash
# What only a GPU can tell, in ten minutes and without a network; see steps.py and CONTRIBUTING.md.
#
#   tests/gpu/run.sh [--wheels FOLDER] [options of steps.py]
#   tests/gpu/run.sh --device cpu --small      # the rehearsal
#
# PYTHON is an interpreter with the machine's own torch; FOLDER holds wheels of what it lacks.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
path=$PWD
if [ "${1:-}" = --wheels ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$2"/*.whl
    path=$path:$site
    shift 2
fi
PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 "$python" tests/gpu/steps.py "$@"
