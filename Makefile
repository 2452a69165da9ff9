# Every task works first: each one builds .venv when it is missing or out of date.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
TOOLS := .venv/tools-installed
SITE := .venv/docs-installed
FEDERATED := .venv-federated/bin
# Small tensors on few cores: one thread per test process is the fastest.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-browser test-federated fuzz bench lint format types docs clean

help: ## list the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## put dcamt into .venv

demo: $(INSTALLED) ## train, predict and report on drawn volumes, in minutes
	$(BIN)/dcamt demo

test: lint types ## lint, type check and the quick tests
	$(PYTEST) -m "not slow and not browser"

test-slow: $(TOOLS) ## the tests that take minutes
	$(PYTEST) -m "slow and not browser"

test-browser: $(TOOLS) ## the pages in a real browser (Chromium); skips without one
	OMP_NUM_THREADS=1 $(BIN)/pytest -m browser tests/browser

test-federated: .venv-federated/installed ## a federation over real connections (Flower); takes long
	OMP_NUM_THREADS=1 $(FEDERATED)/pytest tests/runs/test_flower.py tests/runs/test_flower_in_process.py

fuzz: $(TOOLS) ## 10,000 damaged files for every reader
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzzing.py --inputs 10000

bench: $(TOOLS) ## speed and memory against the plain loop, as ratios
	$(BIN)/python benchmarks/bench_training.py
	$(BIN)/python benchmarks/bench_inference.py
	$(BIN)/python benchmarks/bench_memory.py

lint: $(TOOLS) ## check style and format, change nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(TOOLS) ## fix style and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(TOOLS) ## type check
	$(BIN)/mypy

docs: $(SITE) ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "open site/index.html; to search, too: $(BIN)/python -m http.server --directory site"

clean: ## remove .venv, caches and build output
	rm -rf .venv .venv-federated .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "dcamt needs Python 3.11 or newer: try 'make PYTHON=python3.12'" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(TOOLS): $(INSTALLED) requirements-dev.txt
	$(BIN)/pip install --quiet --no-deps -r requirements-dev.txt  # it names every package
	@touch $@

# Flower wants older versions of some packages than requirements.txt names.
.venv-federated/installed: pyproject.toml
	$(PYTHON) -m venv .venv-federated
	$(FEDERATED)/pip install --quiet -e '.[federated]' 'pytest>=9' 'pytest-timeout>=2.4'
	@touch $@

$(SITE): $(INSTALLED) requirements-docs.txt
	$(BIN)/pip install --quiet --no-deps -r requirements-docs.txt  # it names every package
	@touch $@
