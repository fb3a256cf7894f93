# Everything runs in .venv, which is made when it is absent. PYTHON=python3.12 picks another interpreter;
# TORCH_INDEX=https://download.pytorch.org/whl/cpu takes torch without CUDA on Linux.
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
WORKERS ?= 2

.PHONY: install quickstart test check format bench docs tiny-art tiny-base tiny-experts tiny-table tiny-data-table
.DEFAULT_GOAL := install

install: $(VENV)/installed

# torch first: an unpinned torch would bring gigabytes of CUDA to machines without a GPU.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(PIP) --editable '.[dev,docs]'
	touch $@

quickstart: install
	$(BIN)/clipfuse quickstart

# One thread a worker: two workers with all threads each would fight for the cores.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(MAKE) --no-print-directory test

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python benchmarks/merge.py

docs: install
	$(BIN)/python scripts/method_table.py
	$(BIN)/zensical build --clean

# The offline suite: its artwork (npm, Debian), one more leg of its base's pre-training, its experts, its tables.
tiny-art: install
	$(BIN)/python scripts/make_tiny.py art

tiny-base: install
	$(BIN)/python scripts/make_tiny.py base

tiny-experts: install
	$(BIN)/python scripts/make_tiny.py experts

tiny-table: install
	$(BIN)/python scripts/tiny_table.py

tiny-data-table: install
	$(BIN)/python scripts/data_table.py
