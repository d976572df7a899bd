# `make demo` and `make test` work on a fresh clone: Python 3.11, git and make are enough.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export OMP_NUM_THREADS := 1

.PHONY: help setup demo test faults servers lint check bench soak release lock clean
help:            ## show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv with pinned dependencies

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "fedrisk needs Python 3.11: set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV) (a few minutes, once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)   ## train privately across five synthetic agencies and show what it costs
	@$(BIN)/fedrisk run experiment=demo

test: $(STAMP)   ## run the tests, on two cores
	@$(BIN)/python -m pytest $(PARALLEL) -m "not long"

faults: $(STAMP) ## run the long tests: killed processes, cut networks, a panel's whole cycle, a browser, Ray
	@$(BIN)/python -m pytest $(PARALLEL) -m long

servers:         ## install nginx, PostgreSQL and Chromium where they are missing (Debian, as root): some tests skip without
	@command -v nginx >/dev/null && command -v chromium >/dev/null && ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || \
	  { apt-get update -qq && \
	    apt-get install -y -qq --no-install-recommends nginx-light postgresql chromium fonts-dejavu-core >/dev/null; }

lint: $(STAMP)   ## check format, style and strict types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

check: lint test ## lint, then the tests: import rules among them, warnings are errors

bench: $(STAMP)  ## side-by-side benchmarks; JSON under outputs/bench
	@$(BIN)/python -m experiments.benchmarks

soak: $(STAMP)   ## kill a thousand processes that charge a ledger, then what hosts a federation: about twenty minutes
	@$(BIN)/python -m tests.soak_ledger
	@$(BIN)/python -m tests.soak_federation

release: $(STAMP) ## a signed wheel, wheelhouse and SBOM for agencies, in OUT (default dist/release)
	@$(BIN)/python -m experiments.release $(or $(OUT),dist/release)

lock: $(STAMP)   ## regenerate constraints.txt from the newest releases that pyproject.toml admits
	@$(PYTHON) -m venv --clear .lock
	@.lock/bin/pip install --quiet torch==2.13.0 && .lock/bin/pip install --quiet '.[dev]'
	@{ echo "# Made by make lock: the newest releases that pyproject.toml admits."; \
	   .lock/bin/pip freeze --exclude fedrisk | sed 's/+cpu$$//'; } > constraints.txt
	@rm -rf .lock build *.egg-info

clean:           ## remove what make made (not your outputs)
	@rm -rf $(VENV) build *.egg-info
