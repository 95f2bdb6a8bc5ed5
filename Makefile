# Every target sets up what it needs. `make` alone lists them.
#
#   VENV=DIR      the virtual environment           (default .venv)
#   PYTHON=PATH   the interpreter to build it with  (default: the first python3 that fits)
#   LOCK=cpu|gpu  which lock to install             (default: gpu where nvidia-smi finds a GPU)
#   ARGS="…"      more arguments for demo, test (pytest), bench and verified

.DEFAULT_GOAL := help
SHELL := /bin/sh

VENV ?= .venv
PYTHON ?=
LOCK ?=
ARGS ?=
BIN := $(VENV)/bin
UV := uv==0.13.9

export VENV PYTHON LOCK

# No library here reports usage to anybody.
export DO_NOT_TRACK := 1
export VLLM_NO_USAGE_STATS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export HF_HUB_DISABLE_TELEMETRY := 1
export NO_MKDOCS_2_WARNING := 1

.PHONY: help setup demo test bench verified lint format docs lock up down clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: ## install the locked environment and the demo model (seconds when it is there)
	@sh deployments/setup.sh

demo: setup ## watch a real 135M chat model learn by verified self-play
	$(BIN)/iris demo $(ARGS)

test: lint ## linter, formatter, type checker, then every test
	$(BIN)/python -m pytest $(ARGS)

bench: setup ## measure the table of benchmarks/README.md against TRL, vLLM and lm_eval (50 minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/bench.txt
	$(BIN)/python -m benchmarks $(ARGS)

verified: setup ## compare verified self-play with supervised fine-tuning on a real model (it can be killed and goes on)
	$(BIN)/python -m benchmarks.verified $(ARGS)

lint: setup ## linter, formatter and type checker, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## format the code and apply the linter's safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup ## build the documentation, with its links checked: build/docs/index.html
	$(BIN)/mkdocs build --strict --quiet

# Pins that still fit are kept; UPGRADE=1 takes the newest of everything.
lock: setup ## resolve requirements/*.in into cpu.lock and gpu.lock
	$(BIN)/python -m pip install --quiet --no-deps '$(UV)'
	for kind in cpu gpu; do \
	  $(BIN)/uv pip compile requirements/engine-$$kind.in \
	    --override requirements/overrides-$$kind.txt --output-file requirements/$$kind.lock \
	    --universal --python-version 3.11 --no-annotate --no-emit-index-url --quiet \
	    --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade) || exit 1; \
	done

up: setup ## start a Prefect server, MLflow and a worker, and apply the deployments
	$(BIN)/iris up

down: ## stop what `make up` started
	@if [ -x $(BIN)/iris ]; then $(BIN)/iris down; else echo 'nothing to stop: $(VENV) is not set up'; fi

clean: ## remove what the tools leave behind (not the environment, the stores or the model cache)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -not -path './$(VENV)/*' -prune -exec rm -rf {} +
