# The environment of the project's commands, for bash and zsh; .venv/bin/activate sources it.
# What belongs here: variables that dagster, dg and the libraries read, and use_study, which moves them to another study.
# shellcheck shell=bash
#
#   COMPRESSION_STUDY     a preset's name or a YAML's path (default: demo)
#   COMPRESSION_STORAGE   where studies keep models, history and databases (default: storage/ beside this folder)
#   DAGSTER_HOME          always the study's own: <storage>/<study>/dagster_home

if [ -n "${ZSH_VERSION:-}" ]; then
    # in an eval because bash cannot parse it
    eval '_compression_root="${${(%):-%x}:A:h:h}"'
else
    _compression_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
fi

# `dagster asset materialize` reads neither workspace.yaml nor pyproject.toml. The services that `dagster dev` starts get
# a workspace file from it and take this variable for a contradiction: they stop, and it waits for them for ever.
export DAGSTER_MODULE_NAME=compression_assets
dagster() { _compression_without_module dagster "$@"; }
dg() { _compression_without_module dg "$@"; }
_compression_without_module() {
    if [ "${2:-}" = dev ]; then
        (unset DAGSTER_MODULE_NAME && command "$@")
    else
        command "$@"
    fi
}

export HF_HUB_DISABLE_TELEMETRY=1
export DEEPEVAL_TELEMETRY_OPT_OUT=YES
# Tokenizers are used before and after processes fork; its own threads would only warn.
export TOKENIZERS_PARALLELISM=false

_compression_absolute() {
    case "$1" in
        /*) printf '%s\n' "$1" ;;
        *) printf '%s\n' "$PWD/$1" ;;
    esac
}

# A default that another checkout's activation left in this shell is not a choice of the user's.
if [ "${COMPRESSION_STORAGE:-}" = "${_compression_default_storage:-}" ]; then
    COMPRESSION_STORAGE=""
fi
_compression_default_storage="$_compression_root/storage"
COMPRESSION_STORAGE="$(_compression_absolute "${COMPRESSION_STORAGE:-$_compression_default_storage}")"
export COMPRESSION_STORAGE

# Prints the DAGSTER_HOME of a preset (created here, without starting Python) or of a YAML file (the package names it,
# as it does where the storage has a name that Dagster misreads, and on a cluster).
_compression_home() {
    local ask="$1"
    case "$COMPRESSION_STORAGE" in *[?%]*) ask="/" ;; esac
    if [ -n "${COMPRESSION_RAY:-}" ]; then ask="/"; fi
    case "$ask" in
        */* | *.yaml | *.yml)
            COMPRESSION_STUDY="$1" "$_compression_root/.venv/bin/python" -m compression_assets.cli home
            ;;
        *)
            if [ ! -f "$_compression_root/compression_assets/studies/$1.yaml" ]; then
                echo "There is no study '$1'; presets: $(_compression_presets). A YAML of your own is named by its path." >&2
                return 1
            fi
            mkdir -p "$COMPRESSION_STORAGE/$1/dagster_home" || return 1
            if [ ! -f "$COMPRESSION_STORAGE/$1/dagster_home/dagster.yaml" ]; then
                cp "$_compression_root/storage/dagster.yaml" "$COMPRESSION_STORAGE/$1/dagster_home/dagster.yaml" || return 1
            fi
            printf '%s\n' "$COMPRESSION_STORAGE/$1/dagster_home"
            ;;
    esac
}

_compression_presets() {
    # shellcheck disable=SC2012  # names of presets are [a-z0-9_]
    ls "$_compression_root/compression_assets/studies" | sed -n 's/\.yaml$//p' | paste -sd ' ' -
}

# use_study NAME|PATH: moves COMPRESSION_STUDY and DAGSTER_HOME together; on a mistake both stay as they are.
use_study() {
    if [ "$#" -ne 1 ]; then
        echo "usage: use_study NAME|PATH (now: $COMPRESSION_STUDY; presets: $(_compression_presets))" >&2
        return 2
    fi
    local study="$1" home
    case "$study" in
        */* | *.yaml | *.yml) study="$(_compression_absolute "$study")" ;;
    esac
    home="$(_compression_home "$study")" || return 1
    export COMPRESSION_STUDY="$study" DAGSTER_HOME="$home"
}

use_study "${COMPRESSION_STUDY:-demo}"
