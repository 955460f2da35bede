# Two commands carry the rest: `make retrain` and `make test`. Each sets up .venv first, once.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
MLFLOW_PORT ?= 5000
PORT ?= $(MLFLOW_PORT)
# Where torch comes from when .venv is made: unset, pip's own configuration; else TORCH_INDEX=https://download.pytorch.org/whl/cpu or .../cu130
TORCH_INDEX ?=

.PHONY: help setup retrain test test-all check chaos concurrent gc ui serve-flows stop bench agreement fuzz docs

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
	$(RUN) -m pytest -n 2

test-all: setup ## run the slow tests too: servers, processes, whole pipelines
	$(RUN) -m pytest -n 2 --dist loadfile -m 'slow or not slow'

check: setup ## ruff, formatting, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

KILLS ?= 10
SEED ?= 0
chaos: setup ## kill the smoke pipeline at KILLS random moments, start it again, compare its metrics
	$(RUN) tests/chaos.py $(KILLS) $(SEED)

PIPELINES ?= 8
concurrent: setup ## run PIPELINES smoke pipelines at once, MLflow and Prefect on one PostgreSQL, and count every run
	$(RUN) tests/concurrently.py $(PIPELINES)

docs: setup ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

EXAMPLES ?= 5000
fuzz: setup ## try EXAMPLES odd inputs of each kind: overrides, tables, pictures, archives, pins, JSON
	FUZZ=$(EXAMPLES) $(RUN) -m pytest tests/test_fuzz.py tests/test_endpoint.py -k 'fuzz or json' --hypothesis-show-statistics

DAYS ?= 30
gc: setup ## remove outputs and data that nothing used for DAYS days and no registered model needs
	@$(RUN) -m flows.gc days=$(DAYS)

ui: setup ## open MLflow on 127.0.0.1:$(PORT)
	@$(RUN) -m flows.ui $(PORT)

serve-flows: setup ## start Prefect, its deployments and worker, and MLflow, each unless it runs already
	@$(RUN) -m flows.serve

stop: setup ## end what serve-flows started
	@$(RUN) -m flows.serve stop

# The peers live in an environment of their own, on top of .venv: nothing of them is installed for users.
BENCH := .venv-bench
$(BENCH)/.ready: $(VENV)/.ready benchmarks/peers.txt
	rm -rf $(BENCH)
	$(RUN) -m venv --without-pip $(BENCH)
	$(RUN) -c 'import sysconfig, pathlib; pathlib.Path(sysconfig.get_paths(vars={"base": "$(CURDIR)/$(BENCH)"})["purelib"], "main.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")'
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/peers.txt \
		--target $$($(BENCH)/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
	$(RUN) -m pip download --quiet --disable-pip-version-check --no-deps learn2learn==0.2.0 --dest $(BENCH)/peers
	tar xzf $(BENCH)/peers/learn2learn-0.2.0.tar.gz -C $(BENCH)/peers
	@touch $@

agreement: $(BENCH)/.ready ## compare learners with the peers' values and gradients
	$(BENCH)/bin/python -m benchmarks.agreement

bench: agreement ## time learners against the peers, task generation against a per-task loop, features against torch's layers
	OMP_NUM_THREADS=1 $(BENCH)/bin/python -m benchmarks.learners
	$(RUN) -m benchmarks.sinusoid
	$(RUN) -m benchmarks.tasksets
	$(RUN) -m benchmarks.encoding
