# `make demo` and `make test` do all their own set-up; the second time they are quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench setup clean

demo: $(STAMP)
	$(BIN)/lhydra demo
	@echo "The command lives in $(BIN): . $(BIN)/activate"

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check

bench: $(STAMP)
	@test -d demo/store || $(BIN)/lhydra demo
	$(BIN)/python -m benchmarks.latency --store demo/store --dataset demo/dataset

setup: $(STAMP)

# torch first and pinned: a plain request for it can fetch gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev
	touch $@

clean:
	rm -rf $(VENV) .cache demo
