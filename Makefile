# Set-up, the demo and work on the repository; `make` alone lists it. Every command sets .venv up first, at no cost once
# that is done. What works on a study is a command of its own: `compression --help`.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

STUDY ?= demo
ARGS ?=
PYTHON ?= python3.11
UV_VERSION := 0.13.9
BIN := .venv/bin

# In memory where there are 4 GiB for it: whole runs wait for the disk at every event of Dagster's.
TEST_FILES = $(shell [ "$$(df --output=avail /dev/shm 2>/dev/null | tail -1)" -gt 4194304 ] 2>/dev/null && echo /dev/shm || echo "$${TMPDIR:-/tmp}")

# Reaches recipes through the environment: no quoting to get wrong in a path.
export STUDY PYTHON
# Progress is written line by line and has to be seen as it is written, in a pipe too.
export PYTHONUNBUFFERED := 1

.PHONY: help setup demo ui test test-faults test-gpu test-browser test-cluster cluster-demo bench update_snapshot docs lint format lock distclean

help: ## list these commands
	@grep -hE '^[a-z_-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-16s %s\n", $$1, $$2}'
	@echo
	@echo "  STUDY=NAME|PATH picks the study of ui (default: demo). Everything else on a study: compression --help"

setup: .venv/.ready ## install everything into .venv

.venv/.ready: pyproject.toml constraints.txt scripts/setup.sh scripts/install.sh
	@scripts/setup.sh $(UV_VERSION)

demo: setup ## set up, build all ten models of the embedded study and print the leaderboard
	@$(BIN)/compression run --study demo
	@$(BIN)/compression leaderboard --study demo

ui: setup ## Dagster's web interface on http://127.0.0.1:3000: make ui STUDY=smoke
	@source $(BIN)/activate && use_study "$$STUDY" && dagster dev -h 127.0.0.1 -p 3000

test: setup ## run the tests; ARGS="-k orderings" narrows them
	@PYTEST_DEBUG_TEMPROOT=$(TEST_FILES) $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-faults: setup ## kill runs, fill disks: what make test has no time for
	@$(BIN)/python -m pytest -q -n 2 --dist load -m faults $(ARGS)

test-gpu: setup ## what only a CUDA device can show; skipped, with a reason, where there is none
	@$(BIN)/python -m pytest -q -m gpu compression_assets_tests/gpu $(ARGS)

test-browser: setup ## look at the report and at Dagster's pages in Chromium (apt install chromium)
	@$(BIN)/python -m pytest -q -m browser $(ARGS)

test-cluster: .venv/.cluster ## a study on several hosts, on an object store and a PostgreSQL of its own (installs them)
	@$(BIN)/python -m pytest -q -m cluster $(ARGS)

cluster-demo: .venv/.cluster ## the smoke study on two Ray nodes on this machine, with servers that stop afterwards
	@$(BIN)/python scripts/cluster_demo.py

# one file: what the extra `cluster` and its servers need beside what setup has installed
.venv/.cluster: .venv/.ready
	@scripts/install.sh --editable '.[cluster]' --group cluster-test
	@touch $@

bench: setup ## run every benchmark on the demo's models and write benchmarks/RESULTS.md
	@$(BIN)/python -m benchmarks.run

update_snapshot: setup ## write the asset graph's snapshot anew (read the diff before committing it)
	@UPDATE_SNAPSHOT=1 $(BIN)/python -m pytest -q compression_assets_tests/test_graph.py $(ARGS)

docs: setup ## write docs/study_file.md anew from the models that read a study file
	@$(BIN)/python scripts/study_file_docs.py

lint: setup ## ruff's rules and formatting, the direction of imports, and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/mypy

format: setup ## format, and mend what ruff can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

lock: setup ## resolve constraints.txt anew (newest releases that pyproject.toml admits)
	@scripts/lock.sh $(UV_VERSION)

distclean: ## delete caches and .venv; storage/ stays
	@rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .deepeval
	@find compression_assets compression_assets_tests -name __pycache__ -type d -prune -exec rm -rf {} +
