#!/usr/bin/env bash
# Writes constraints.txt: the newest set of releases that pyproject.toml admits, for Python 3.11 on Linux. torch stays at
# the release that stands there: another one is a matter of gigabytes and of kernels, so its line is changed by hand first.
# Usage: scripts/lock.sh UV_VERSION [options of `uv pip compile`, e.g. --upgrade-package duckdb instead of everything]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv_version="$1"
shift
[ "$#" -gt 0 ] || set -- --upgrade

.venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$uv_version"
new="$(mktemp)"
torch="$(mktemp)"
trap 'rm -f "$new" "$torch"' EXIT
grep '==' constraints.txt >"$new"
grep '^torch==' constraints.txt >"$torch"
.venv/bin/uv pip compile pyproject.toml --extra cluster --group dev --group cluster-test --constraint "$torch" \
    --python-version 3.11 --python-platform x86_64-unknown-linux-gnu --no-annotate --no-header --quiet \
    --output-file "$new" "$@" >/dev/null
{
    sed '/==/,$d' constraints.txt
    # A local version (+cpu) names one build of a release.
    grep '==' "$new" | sed -E 's/\+[a-z0-9.]+//'
} >constraints.new
mv constraints.new constraints.txt
git --no-pager diff --stat -- constraints.txt || true
