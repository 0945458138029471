# `make demo` and `make test` do all the set-up on a machine with Python 3.11 or later.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test lint types docs measure clean

demo: $(VENV)/installed
	$(BIN)/acclimate demo

test: lint types docs $(VENV)/installed-dev
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

docs: $(VENV)/installed-dev
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build

measure: $(VENV)/installed-dev
	$(BIN)/python measurements/speed.py
	$(BIN)/python measurements/methods.py
	$(BIN)/python measurements/extraction.py
	$(BIN)/python measurements/layout.py
	$(BIN)/python measurements/fit.py
	$(BIN)/python measurements/scale.py

# The stamps are made anew when the dependencies change.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Acclimate needs Python 3.11 or later; try: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache docs/_build
