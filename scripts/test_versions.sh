#!/usr/bin/env bash
# Runs the README's test command with the oldest and the newest supported versions, each in a fresh virtual environment: Python 3.11
# with jax 0.10.2, and Python 3.12 with the newest jax. Ends with a line for each; exit code 0 when both passed. Needs a package index.
#
#   scripts/test_versions.sh [--python311 PATH] [--python312 PATH] [PYTEST_ARGUMENT ...]
#
# PATH: the interpreters, where `python3.11` and `python3.12` are not on the PATH. Further arguments go to pytest: tests/layers, -m full.
set -euo pipefail
exec </dev/null

python311=python3.11 python312=python3.12
while [ $# -gt 0 ]; do
  case $1 in
    --python311) python311=${2:?--python311 needs the path of an interpreter} && shift 2 ;;
    --python312) python312=${2:?--python312 needs the path of an interpreter} && shift 2 ;;
    *) break ;;
  esac
done
for python in "$python311" "$python312"; do
  command -v "$python" >/dev/null || { echo "$python: no such interpreter; name it with --python311 PATH or --python312 PATH" >&2 && exit 2; }
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export XDG_CACHE_HOME="$scratch/cache" # nothing is written to the home folder, and nothing found there changes a result

results=() failed=0
run() { # interpreter, requirement of jax, arguments of pytest
  local bin="$scratch/$2/bin" status=0 versions='import jax, platform; print(f"Python {platform.python_version()}, jax {jax.__version__}")'
  "$1" -m venv "$scratch/$2"
  "$bin/pip" install --quiet -e ".[test]" "$2"
  "$bin/python" -m pytest "${@:3}" 2>&1 | tee "$scratch/log" || status=$?
  results+=("$("$bin/python" -c "$versions"): $(tail -n 1 "$scratch/log")")
  [ $status = 0 ] || failed=1
}
run "$python311" jax==0.10.2 "$@"
run "$python312" jax "$@"
printf '%s\n' "${results[@]}"
exit $failed
