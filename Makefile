# Keel. `make` lists what there is to do; `make serve` and `make test` set up everything they need.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV    := .venv
BIN     := $(VENV)/bin
export PYTHON
# Options for the command behind a target: make serve ARGS="--port 9000", make test ARGS="-k pii".
ARGS    ?=
# Test processes. The tests against real vLLM share one of them, so that vLLM starts once.
WORKERS ?= $(shell n=$$(nproc); echo $$(( n < 4 ? n : 4 )))

.PHONY: help serve test test-long check format bench bench-swaps bench-training loadtest loop lock clean env env-dev

help: ## list the targets
	@echo "Keel: a gateway that keeps a language model aligned while it answers"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  Options for the command behind a target go into ARGS: make serve ARGS="--port 9000"'

serve: env ## install what serving needs, start vLLM and the gateway on 127.0.0.1:8000
	@exec $(BIN)/keel serve $(ARGS)

test: env-dev ## install the test tools, run every test (real vLLM included)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

test-long: env-dev ## the same with hypothesis's long profile: hundreds of thousands of cases
	@HYPOTHESIS_PROFILE=long OMP_NUM_THREADS=1 \
	    $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --timeout 3600 $(ARGS)

check: env-dev ## lint, formatting, types, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: env-dev ## put imports and layout in order
	@$(BIN)/ruff check --fix --select I .
	@$(BIN)/ruff format .

bench: env-dev ## measure speed and memory, write docs/BENCHMARKS.md
	@$(BIN)/python -m loadtests.bench $(ARGS)

bench-swaps: env-dev ## stream to 16 callers while checkpoints are swapped, write docs/RESULTS-hotload.md
	@$(BIN)/python -m loadtests.bench.swaps --out docs/RESULTS-hotload.md $(ARGS)

bench-training: env-dev ## measure training speed beside TRL, write docs/BENCHMARKS-TRAINING.md
	@$(BIN)/python -m training.bench $(ARGS)

loadtest: env-dev ## load the embedded gateway (ramp, spike, saturation, 10x overload), fail on a missed threshold
	@$(BIN)/python -m loadtests $(ARGS)

loop: env-dev ## SFT, reward, DPO, PPO, evaluate, publish, serve: once around, writes docs/RESULTS.md
	@$(BIN)/keel-train loop $(ARGS)

lock: env-dev ## resolve requirements/*.in again and write the lock files
	@$(BIN)/python scripts/lock.py

clean: ## remove the environment and everything that was built
	rm -rf $(VENV) $(VENV).lock build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache \
	    .import_linter_cache .hypothesis .schemathesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

env: # only the environment that serving needs
	@scripts/bootstrap serve

env-dev: # only the environment that tests and checks need
	@scripts/bootstrap dev
