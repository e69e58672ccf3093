# The front door: `make demo` runs the main job, `make test` the tests, each from nothing.
PYTHON ?= python3
VENV ?= .venv
CORES ?= all
PYTEST = python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
export PATH := $(abspath $(VENV))/bin:$(PATH)

LADDER ?= config/ladder_fib25.yaml

.PHONY: demo test test-slow test-all test-random check rehearse models

demo: $(VENV)/ready
	snakemake --cores $(CORES)

test: $(VENV)/ready-test
	$(PYTEST) -m "not slow"

# Whole workflows, clusters, and processes that are killed, stopped or joined.
test-slow: $(VENV)/ready-test
	$(PYTEST) -m slow

test-all: test test-slow

# All tests with 20 times as many examples, drawn anew each time, which takes hours.
test-random: $(VENV)/ready-test
	$(PYTEST) --hypothesis-profile thorough --timeout 7200

# The GPU programme on the CPU, with tiny sizes; see benchmarks/gpu.
rehearse: $(VENV)/ready-test
	rm -rf build/rehearsal build/rehearsal-work
	python benchmarks/gpu/run.py build/rehearsal --rehearse
	python benchmarks/gpu/collect.py build/rehearsal --models build/rehearsal/models

# The queue of trainings, for days in the background: one on each core, resumed where they were stopped.
models: $(VENV)/ready
	nice -n 19 snakemake models --cores $(CORES) --set-threads train=1 --keep-going --configfile $(LADDER)

# What CI runs beside the tests.
check: $(VENV)/ready-test
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	snakefmt --check Snakefile rules
	snakemake --lint
	python .ci/dependencies.py

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "kdseg needs Python 3.11 or newer: make PYTHON=python3.11 ..."'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/ready-test: $(VENV)/ready
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
