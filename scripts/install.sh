#!/usr/bin/env bash
# Installs into .venv what the arguments name, in the versions of constraints.txt: scripts/install.sh --editable . --group dev
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Knows --group, which came with 25.1.
PIP_VERSION=25.3

# uv needs a fraction of pip's time. It knows nothing of pip's own settings: where a mirror or a certificate is named only
# there, pip installs the same versions.
if ! .venv/bin/uv pip install --quiet --python .venv/bin/python "$@" --constraints constraints.txt; then
    echo "uv could not install the packages; pip does it now, which takes some minutes longer."
    # -qq: errors only. With -q every missing entry of an extra package index is a line of its own.
    pip_install=(.venv/bin/python -m pip install -qq --disable-pip-version-check --progress-bar off)
    "${pip_install[@]}" "pip==$PIP_VERSION"
    "${pip_install[@]}" "$@" -c constraints.txt
fi
