# payflow: every command a developer needs. `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
SHELL  := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help run test lint fmt lock sim bench clean

help: ## Show this list
	@grep -hE '^[a-z][a-zA-Z_-]*:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

# One environment serves running and testing; the stamps make a second call cheap and a changed lock file count.
$(VENV)/run.stamp: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "payflow needs Python 3.11 or newer; set PYTHON=..." >&2; exit 69; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked dependencies (once) ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp requirements-dev.lock
	@echo "installing the development tools (once) ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

run: $(VENV)/run.stamp ## Start payflow on the embedded broker (ARGS="--http-port 8081 ..."); Ctrl-C ends it
	@exec $(BIN)/python -m payflow serve $(ARGS)

test: $(VENV)/dev.stamp ## Run every test that needs no server of its own (under 5 minutes)
	@$(BIN)/python -m pytest -m "not kafka" $(ARGS)

lint: $(VENV)/dev.stamp ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/mypy

fmt: $(VENV)/dev.stamp ## Mend what the linter can mend
	@$(BIN)/ruff check --fix .

lock: $(VENV)/dev.stamp ## Write the lock files anew from pyproject.toml
	@for target in "requirements.lock --extra uvloop --extra embedded --extra load --extra build" "requirements-dev.lock --all-extras"; do \
	  set -- $$target; out=$$1; shift; \
	  CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --generate-hashes --no-emit-options --strip-extras --allow-unsafe --output-file $$out "$$@" pyproject.toml; \
	done

sim: $(VENV)/dev.stamp ## Replay one seed of the simulation (SEED=17), or run new seeds until interrupted
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--forever) $(ARGS)

bench: $(VENV)/dev.stamp ## Measure and print each figure beside its target
	@$(BIN)/python -m tests.bench $(ARGS)

clean: ## Remove the environment and caches (never the data directory)
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
