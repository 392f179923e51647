# kvpool. `make help` lists the targets. Each of them makes the environment (.venv) first when it is missing or old.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PY     := $(BIN)/python
STAMP  := $(VENV)/.installed
CONFIG ?= configs/chat.yaml
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help:  ## this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v == (3, 11) else "requirements.lock is for Python 3.11; %s is %d.%d: make PYTHON=/path/to/python3.11, or pip install -e .[test,dev]" % (sys.executable, *v))'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: venv
venv: $(STAMP)  ## the environment, with exactly the versions of requirements.lock

.PHONY: run
run: $(STAMP)  ## one simulation (CONFIG=configs/chat.yaml)
	$(PY) -m sim run $(CONFIG)

.PHONY: test
test: $(STAMP)  ## all tests but the benchmarks (PYTEST_ARGS=...)
	$(PY) -m pytest $(PYTEST_ARGS)

.PHONY: lint
lint: $(STAMP)  ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(STAMP)  ## what ruff can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: docs
docs: $(STAMP)  ## make docs/config.md and docs/sweep_keys.md again from the config models
	$(PY) -m sim docs config > docs/config.md.tmp
	mv docs/config.md.tmp docs/config.md
	$(PY) -m sim docs sweep > docs/sweep_keys.md.tmp
	mv docs/sweep_keys.md.tmp docs/sweep_keys.md

.PHONY: docs-check
docs-check: $(STAMP)  ## fail when docs/config.md or docs/sweep_keys.md is not what the code says
	$(PY) -m sim docs config | diff -u docs/config.md - \
	  || { echo 'docs/config.md is out of date: run `make docs` and commit it' >&2; exit 1; }
	$(PY) -m sim docs sweep | diff -u docs/sweep_keys.md - \
	  || { echo 'docs/sweep_keys.md is out of date: run `make docs` and commit it' >&2; exit 1; }

.PHONY: check
check: $(STAMP)  ## run the configs of configs/baselines again and compare their curves (docs/baselines.md)
	$(PY) -m sim check $(CHECK_ARGS)

.PHONY: bench
bench: $(STAMP)  ## benchmarks, then the table of speeds and ratios
	$(PY) -m pytest tests/benchmarks -m bench $(PYTEST_ARGS)
	$(PY) -m tests.benchmarks.table

.PHONY: bench-scale
bench-scale: $(STAMP)  ## cost and memory as trace and pool grow by 10 and 100 (some minutes), and the picture of it
	$(PY) -m tests.benchmarks.scale --out scale.json --plot docs/images/scale.png

.PHONY: published
published: $(STAMP)  ## runs that reproduce published results, with the published numbers beside them
	$(PY) -m sim.published

# validate and bench-vllm: what needs a real vLLM, in an environment of its own (.venv-vllm) with its own lock.
-include validation/vllm.mk

.PHONY: lock
lock: $(STAMP)  ## requirements.lock again, with today's versions
	printf '%s\n' '# Exact versions for Python 3.11 on Linux: runtime, test and dev. Made by `make lock` from pyproject.toml.' > requirements.lock.tmp
	$(BIN)/pip-compile --quiet --upgrade --extra test --extra dev --strip-extras --allow-unsafe --no-header \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options --output-file - pyproject.toml >> requirements.lock.tmp
	mv requirements.lock.tmp requirements.lock

.PHONY: clean
clean:  ## remove the environments, caches and build leftovers (not runs/)
	rm -rf $(VENV) .venv-vllm .kvpool-cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
