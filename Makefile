# Two commands carry the rest: `make retrain` and `make test`. Each sets up .venv first, once.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PORT ?= 5000
# Where torch comes from: unset, pip's own configuration; for a CUDA build, TORCH_INDEX=https://download.pytorch.org/whl/cu130
TORCH_INDEX ?=

.PHONY: help setup retrain test test-all check ui bench

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.ready ## set up .venv from pyproject.toml and constraints.txt

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "fewloop needs Python 3.11 or newer, got %d.%d. Set PYTHON=python3.11." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

retrain: setup ## run the whole pipeline on the embedded default (OVERRIDES='key=value ...')
	$(RUN) -m flows.retrain $(OVERRIDES)

test: setup ## run the tests
	$(RUN) -m pytest

test-all: setup ## run the slow tests too: servers, processes, whole pipelines
	$(RUN) -m pytest -m 'slow or not slow'

check: setup ## ruff, formatting, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

ui: setup ## open MLflow on 127.0.0.1:$(PORT)
	@$(RUN) -m flows.ui $(PORT)

bench: setup ## time task generation against a per-task loop
	$(RUN) -m benchmarks.tasksets
