# make demo | make test | make lint | make bench: each sets up .venv by itself; nothing but Python >= 3.11 is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean

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

# On the CPU, in less than 10 minutes; benchmarks/gpu_suite.py is for CUDA machines.
bench: $(VENV)/.examples
	for name in neurons norms networks; do \
		OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py \
			--out benchmarks/results/cpu-$$name.json --plot docs/figures/bench-$$name.png || exit 1; \
	done
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/neurons.py --default-allocator \
		--out benchmarks/results/cpu-neurons-default-allocator.json

$(VENV)/.examples $(VENV)/.dev: $(VENV)/.%: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "snn-ext needs Python >= 3.11: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) runs build dist
