# Two commands matter: `make run` and `make test`. Both set up .venv on a fresh machine and are quick when it is there.
PYTHON ?= python3
VENV   ?= .venv
RUN    ?= runs/tiny
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install run test check bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,samples,data,distributed,postgres,dashboard,compress]'
	@touch $@

install: $(STAMP)  ## a virtual environment with everything, CPU torch included

run: $(STAMP)  ## the main job on `tiny`: profile, train, search, build, export, report (about ten minutes)
	$(BIN)/nas run tiny --device host_cpu --out $(RUN)
	@echo "Open $(RUN)/report.html"

test: $(STAMP)  ## the test suite
	$(BIN)/python -m pytest -q -n auto --dist worksteal

check: $(STAMP)  ## lint, types, import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## every benchmark; each prints a table and one JSON line
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || failed=1; done; exit $${failed:-0}

clean:  ## remove everything that can be made again, runs excepted
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
