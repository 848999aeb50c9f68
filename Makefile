# Commands of the project; `make` alone lists them. Every one sets .venv up first, at no cost once that is done.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

STUDY ?= demo
SQL ?=
ARGS ?=
PYTHON ?= python3.11
UV_VERSION := 0.13.9
BIN := .venv/bin

# Reaches recipes through the environment: no quoting to get wrong in a path or a query.
export STUDY SQL PYTHON
# Progress is written line by line and has to be seen as it is written, in a pipe too.
export PYTHONUNBUFFERED := 1

.PHONY: help setup demo run query report plan ui check test test-faults test-browser bench update_snapshot docs lint format lock recommend export doctor clean distclean

help: ## list these commands
	@grep -hE '^[a-z_-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-16s %s\n", $$1, $$2}'
	@echo
	@echo "  STUDY=NAME|PATH picks the study of run, query, report, plan, ui, check, recommend, export, doctor and clean (default: demo)."

setup: .venv/.ready ## install everything into .venv

.venv/.ready: pyproject.toml constraints.txt scripts/setup.sh
	@scripts/setup.sh

demo: setup ## set up, build all ten models of the embedded study and print the leaderboard
	@$(BIN)/compression run --study demo
	@$(BIN)/compression leaderboard --study demo

run: setup ## build the models of a study: make run STUDY=smoke
	@$(BIN)/compression run --study "$$STUDY"

query: setup ## print the leaderboard beside the paper's, or SQL="SELECT …"
	@if [ -n "$$SQL" ]; then $(BIN)/compression query --study "$$STUDY" "$$SQL"; \
	else $(BIN)/compression leaderboard --study "$$STUDY"; fi

report: setup ## write the study's report (one HTML page) anew and print where it is
	@$(BIN)/compression report --study "$$STUDY"

plan: setup ## sizes, memory, hours and disk of a study before anything is fetched; DEVICE=a6000|a100|h100|cpu
	@$(BIN)/compression plan --study "$$STUDY" $(if $(DEVICE),--device $(DEVICE))

ui: setup ## Dagster's web interface on http://127.0.0.1:3000
	@source $(BIN)/activate && use_study "$$STUDY" && dagster dev -h 127.0.0.1 -p 3000

check: setup ## load the definitions and validate them
	@source $(BIN)/activate && use_study "$$STUDY" && exec dg check defs

test: setup ## run the tests; ARGS="-k orderings" narrows them
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-faults: setup ## kill runs, fill disks: what make test has no time for
	@$(BIN)/python -m pytest -q -n 2 --dist load -m faults $(ARGS)

test-browser: setup ## look at the report and at Dagster's pages in Chromium (apt install chromium)
	@$(BIN)/python -m pytest -q -m browser $(ARGS)

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

recommend: setup ## the Pareto front and the model to take; ARGS="--max-size 80 --max-perplexity 60 --min f1=0.2"
	@$(BIN)/compression recommend --study "$$STUDY" $(ARGS)

export: setup ## write a model for use elsewhere and load it back: MODEL=p_kd_q FORMAT=hf|gguf
	@$(BIN)/compression export "$(MODEL)" --format "$(or $(FORMAT),hf)" --study "$$STUDY"

doctor: setup ## what this machine lacks for a study: packages, devices, memory, disk, network, keys
	@$(BIN)/compression doctor --study "$$STUDY"

clean: setup ## free what nothing needs any more, never a final model; ARGS=--dry-run only says what
	@$(BIN)/compression clean --study "$$STUDY" $(ARGS)

distclean: ## delete caches and .venv; storage/ stays
	@rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .deepeval
	@find compression_assets compression_assets_tests -name __pycache__ -type d -prune -exec rm -rf {} +
