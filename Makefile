# Every target makes .venv/ when it is missing or when the dependencies changed.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test e2e check format clean

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/.installed
	$(BIN)/backbone compare jobs/specs/demo.yaml

test: .venv/.installed
	$(BIN)/pytest -m "not e2e"

e2e: .venv/.installed
	$(BIN)/pytest -m e2e

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_architecture.py

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
