# The whole product from a clone: make demo | make lab | make test. Each does its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -q
STAMP := $(VENV)/.installed
SOURCES := pyproject.toml constraints.txt hatch_build.py \
	$(shell find extensions/jupyterlab/src extensions/jupyterlab/style extensions/jupyterlab/schema -type f 2>/dev/null) \
	$(wildcard extensions/jupyterlab/package*.json extensions/jupyterlab/tsconfig.json)

.PHONY: setup demo lab test test-ui check bench claims clean

setup: $(STAMP)

$(STAMP): $(SOURCES)
	@command -v $(PYTHON) >/dev/null || { echo "No $(PYTHON) here: install Python 3.11 or newer, or run make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "CloudShift Lab needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/python -m cloudshift_lab demo --out build/demo

lab: setup
	$(BIN)/python -m jupyterlab notebooks/01_quickstart.ipynb

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) tests/tidy

# Tests of real moves and real ranks mostly wait for processes: they run beside the others.
MOVING := tests/agent tests/bench tests/chaos
TRAINING := tests/checkpoint tests/training tests/engines tests/formats
APART := tests/ui tests/server tests/notebooks
BESIDE := $(MOVING) $(TRAINING) $(APART)

test: setup
	@mkdir -p build; trap 'kill $$moving $$training 2>/dev/null; exit 130' INT TERM; \
	{ $(PYTEST) $(MOVING); moved=$$?; $(PYTEST) tests/notebooks; exit $$((moved + $$?)); } \
	  >build/test-moving.log 2>&1 & moving=$$!; \
	$(PYTEST) $(TRAINING) >build/test-training.log 2>&1 & training=$$!; \
	$(PYTEST) tests $(BESIDE:%=--ignore=%); others=$$?; \
	wait $$training; trained=$$?; cat build/test-training.log; \
	wait $$moving; moved=$$?; cat build/test-moving.log; exit $$((others + trained + moved))
	$(PYTEST) tests/server

test-ui: setup
	$(PYTEST) tests/ui --confcutdir=tests/ui

bench: setup
	$(BIN)/python -m cloudshift_lab sim --seeds 1000 --json build/bench/sim.json
	for name in codec corruption restore checkpoint; do \
		$(BIN)/python -m cloudshift_lab bench $$name --json tests/bench/results/$$name.json || true; \
	done

claims: setup
	$(BIN)/python -m cloudshift_lab.sim.bench.claims

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
