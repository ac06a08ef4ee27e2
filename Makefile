# make demo | test | lint | docs | bench | compliance | compat | fuzz | coverage | mutants: each sets up .venv by itself;
# nothing but Python >= 3.11 is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WITH_dev := -e examples/third_party_adapter

# Random tests start from this number; the nightly ones from another every night (printed, to repeat a failure).
SEED ?= 0
fuzz: SEED := $(shell date +%s)

.PHONY: demo test fuzz coverage mutants compliance compat lint docs bench clean

demo: $(VENV)/.examples
	$(BIN)/python examples/digits.py

# One thread per process: two processes on two cores beat two threads each.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --hypothesis-seed=$(SEED)

# Every night: 10,000 hostile models and damaged files instead of 500.
fuzz: $(VENV)/.dev
	SNN_EXT_EXAMPLES=10000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --hypothesis-seed=$(SEED) \
		tests/property/test_hostile.py tests/property/test_torn_files.py tests/adapters/test_hostile.py

# Lines and branches of the core that the tests reach.
coverage: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --hypothesis-seed=$(SEED) --cov=snn_ext --cov-branch \
		--cov-report=term-missing:skip-covered --cov-fail-under=95

# Would the tests notice? A sample of the mutants of each package of the core; SAMPLE=0 for all, in hours.
SAMPLE ?= 200
mutants: $(VENV)/.dev
	$(BIN)/python tests/mutation.py run --sample $(SAMPLE)
	$(BIN)/python tests/mutation.py score

# Is patching still right, in the installed releases of the frameworks?
compliance: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --pyargs snn_ext.testing

# The same in other releases, old and new, each in an environment of its own; writes docs/compatibility.md.
# Ten minutes and 10 GB the first time: uv keeps what it downloads, and links it into the environments.
compat: $(VENV)/.dev
	$(BIN)/python compat/run.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Writes site/: open site/index.html (searching needs a server: python -m http.server -d site).
# Every warning, broken links and anchors among them, is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# On the CPU, in less than 10 minutes; benchmarks/gpu_suite.py is for CUDA machines.
bench: $(VENV)/.examples
	for name in neurons norms networks; do \
		OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py \
			--out benchmarks/results/cpu-$$name.json --plot docs/figures/bench-$$name.png || exit 1; \
	done
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/neurons.py --default-allocator \
		--out benchmarks/results/cpu-neurons-default-allocator.json

$(VENV)/.examples $(VENV)/.docs $(VENV)/.dev: $(VENV)/.%: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "snn-ext needs Python >= 3.11: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e ".[$*]" $(WITH_$*)
	touch $@

clean:
	rm -rf $(VENV) runs build dist site mutants
