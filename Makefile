# Everything here uses .venv in the checkout, and makes it when it is missing or out of date.
#   make demo        all four steps on real data, in three minutes
#   make test        the tests
#   make test-slow   the fault and fuzz suites
#   make test-oldest the tests with the oldest packages that pyproject.toml allows, in .venv-oldest
#   make lint        ruff and mypy
# Another interpreter: make PYTHON=python3.12 install

PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
BIN = $(VENV)/bin
# A file's tests stay in one process, which makes what they share once; small models need one thread each.
PARALLEL = -n logical --maxprocesses 8 --dist loadfile

.PHONY: install demo test test-slow test-oldest lint

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/vitcod demo --output-dir runs/demo --overwrite

test: install
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow'

test-slow: install
	$(BIN)/python -m pytest $(PARALLEL) -m slow

test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) tests/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(OLDEST)/constraints.txt --editable '.[test]'
	$(OLDEST)/bin/python -m pytest $(PARALLEL) -m 'not slow'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
