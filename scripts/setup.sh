#!/usr/bin/env bash
# Makes or updates .venv. `make setup` calls it only when pyproject.toml, constraints.txt or this file changed.
# Usage: scripts/setup.sh UV_VERSION
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv_version="$1"
PYTHON="${PYTHON:-python3.11}"
# Knows --group, which came with 25.1.
PIP_VERSION=25.3

if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    if ! command -v "$PYTHON" >/dev/null; then
        echo "$PYTHON is not installed; install Python 3.11 or 3.12 and name it: make setup PYTHON=python3.12" >&2
        exit 1
    fi
    # --clear: what an interrupted set-up left behind is no use
    "$PYTHON" -m venv --clear .venv
fi

# -qq: errors only. With -q every missing entry of an extra package index is a line of its own.
pip_install() { .venv/bin/python -m pip install -qq --disable-pip-version-check --progress-bar off "$@"; }

# torch first and exactly: once it is there, nothing that follows asks for another build of it. A CPU build comes from
# wherever pip is told to look (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL), otherwise the one on PyPI.
torch="$(grep '^torch==' constraints.txt)"
if ! .venv/bin/python -m pip show --quiet torch 2>/dev/null; then
    echo "Installing $torch and about 150 other packages into .venv; this takes a few minutes."
fi
pip_install "$torch" "uv==$uv_version" -c constraints.txt
# uv needs a fraction of pip's time for the rest. It knows nothing of pip's own settings: where a mirror or a certificate
# is named only there, pip installs the same versions.
if ! .venv/bin/uv pip install --quiet --python .venv/bin/python --editable . --group dev --constraints constraints.txt; then
    echo "uv could not install the packages; pip does it now, which takes some minutes longer."
    pip_install "pip==$PIP_VERSION"
    pip_install --editable . --group dev -c constraints.txt
fi

if ! grep -q 'scripts/env.sh' .venv/bin/activate; then
    cat >>.venv/bin/activate <<'ACTIVATE'

# compression_assets: DAGSTER_HOME, DAGSTER_MODULE_NAME and use_study
. "$VIRTUAL_ENV/../scripts/env.sh"
ACTIVATE
fi

touch .venv/.ready
