# Needs make and Python 3.11-3.13 with venv, nothing else. `make` lists the targets.
#
#   make demo VENV=/scratch/env       another place for the environment
#   make demo PYTHON=python3.12       another interpreter
#   make test PYTEST_ARGS="-k uce"    further arguments for pytest (default: one worker a core)
#   make demo TORCH= VENV=mine        keep the torch that is in the environment (an older CUDA, ROCm)

SHELL := /bin/sh
VENV ?= .venv
PYTHON ?=
EXTRAS ?= nudenet,fid,dev
LOCK ?= requirements.lock
TORCH ?= torch torchvision
PYTEST_ARGS ?= -n logical
ARGS ?=

PY := $(VENV)/bin/python
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.11 python3.12 python3.13 python3 python)
RIGHT_VERSION := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
KEY := $(shell { cat pyproject.toml '$(LOCK)'; echo '$(EXTRAS)'; } | cksum | tr -cd 0-9)
STAMP := $(VENV)/.erasebench-$(KEY)
TESTS := OMP_NUM_THREADS=1 "$(PY)" -m pytest -q

export PYTHONPATH := $(CURDIR)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Sets $$python to the first candidate that runs, has the right version and can make environments.
FIND_PYTHON = python=; bare=; \
	for candidate in $(CANDIDATES); do \
	  "$$candidate" -c '$(RIGHT_VERSION)' 2>/dev/null || continue; \
	  if "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then python=$$candidate; break; fi; \
	  bare="$$bare $$candidate"; \
	done; \
	if [ -z "$$python" ] && [ -n "$$bare" ]; then \
	  echo "PYTHON - must come with venv and ensurepip; found$$bare without them;" \
	    "install them (Debian, Ubuntu: apt install python3-venv, or python3.12-venv for python3.12)" >&2; \
	  exit 1; \
	elif [ -z "$$python" ]; then \
	  echo "PYTHON - must be Python 3.11, 3.12 or 3.13; looked for: $(CANDIDATES);" \
	    "install one or say make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi

.PHONY: help
help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{ printf "make %-12s %s\n", $$1, $$2 }'

.PHONY: demo
demo: setup ## set everything up, then erase a concept from the embedded model and attack it
	"$(PY)" -m erasebench method=rece attack=ringabell $(ARGS)

.PHONY: test
test: setup ## set everything up, then run all tests
	$(TESTS) $(PYTEST_ARGS)

.PHONY: check
check: lint ## before a commit: lint, fast tests, doctests
	$(TESTS) -m "not slow" $(PYTEST_ARGS)

.PHONY: lint
lint: setup ## format, style, types, import rules
	"$(PY)" -m ruff format --check .
	"$(PY)" -m ruff check .
	"$(PY)" -m mypy
	"$(PY)" -c 'from importlinter.cli import lint_imports_command as command; command()'

.PHONY: benchmarks
benchmarks: setup ## measure speed and memory
	@set -e; for script in tables fid "evaluators speed" generate erase recipes methods "attacks ringabell" "attacks unlearndiffatk"; do \
	  echo "== $$script"; "$(PY)" -m benchmarks.$$script; \
	done

.PHONY: setup
setup: $(STAMP) ## make the environment (VENV, default .venv); instant when it is up to date

.PHONY: python
python: ## print the interpreter the environment is made with
	@$(FIND_PYTHON); command -v "$$python"

.PHONY: clean
clean: ## remove caches and build products; results and the environment stay
	rm -rf build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -path './.*' -prune -o -type d -name __pycache__ -print | xargs rm -rf

# A stamp of an environment whose interpreter is gone is worth nothing.
ifeq ($(wildcard $(PY)),)
.PHONY: $(STAMP)
endif

# torch first and by itself: where pip does not offer the locked version, what it offers is taken and kept.
$(STAMP):
	@if ! "$(PY)" -c '$(RIGHT_VERSION)' 2>/dev/null; then \
	  $(FIND_PYTHON); \
	  echo "making $(VENV) with $$("$$python" -V)"; \
	  "$$python" -m venv "$(VENV)"; \
	fi
	@rm -f "$(VENV)"/.erasebench-*
	@if [ -n "$(strip $(TORCH))" ]; then \
	  echo "installing $(TORCH) (the largest part)"; \
	  "$(PY)" -m pip install -c "$(LOCK)" $(TORCH) || { \
	    echo "pip could not install the locked torch; trying the one it offers" >&2; \
	    "$(PY)" -m pip install $(TORCH); \
	  }; \
	fi
	@echo "installing erasebench[$(EXTRAS)]"
	@{ grep -vE '^torch(vision)?==' "$(LOCK)"; "$(PY)" -m pip freeze | grep -E '^torch(vision)?=='; } \
	  > "$(VENV)/constraints.txt"
	@"$(PY)" -m pip install -c "$(VENV)/constraints.txt" -e ".[$(EXTRAS)]"
	@touch "$@"
