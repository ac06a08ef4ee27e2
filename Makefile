# make demo | make test | make lint: each sets up .venv by itself; nothing but Python >= 3.11 is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WITH_dev := -e examples/third_party_adapter

.PHONY: demo test lint clean

demo: $(VENV)/.examples
	$(BIN)/python examples/digits.py

# One thread per process: two processes on two cores beat two threads each.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.examples $(VENV)/.dev: $(VENV)/.%: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "snn-ext needs Python >= 3.11: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e ".[$*]" $(WITH_$*)
	touch $@

clean:
	rm -rf $(VENV) runs build dist
