#!/usr/bin/env bash
# Makes or updates .venv. `make setup` calls it only when pyproject.toml, constraints.txt or this file changed.
# Usage: scripts/setup.sh UV_VERSION
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv_version="$1"
PYTHON="${PYTHON:-python3.11}"

if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    if ! command -v "$PYTHON" >/dev/null; then
        echo "$PYTHON is not installed; install Python 3.11 or 3.12 and name it: make setup PYTHON=python3.12" >&2
        exit 1
    fi
    # --clear: what an interrupted set-up left behind is no use
    "$PYTHON" -m venv --clear .venv
fi

# torch first and exactly: once it is there, nothing that follows asks for another build of it. A CPU build comes from
# wherever pip is told to look (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL), otherwise the one on PyPI.
torch="$(grep '^torch==' constraints.txt)"
if ! .venv/bin/python -m pip show --quiet torch 2>/dev/null; then
    echo "Installing $torch and about 150 other packages into .venv; this takes a few minutes."
fi
.venv/bin/python -m pip install -qq --disable-pip-version-check --progress-bar off "$torch" "uv==$uv_version" -c constraints.txt
scripts/install.sh --editable . --group dev

if ! grep -q 'scripts/env.sh' .venv/bin/activate; then
    cat >>.venv/bin/activate <<'ACTIVATE'

# compression_assets: DAGSTER_HOME, DAGSTER_MODULE_NAME and use_study
. "$VIRTUAL_ENV/../scripts/env.sh"
ACTIVATE
fi

touch .venv/.ready
