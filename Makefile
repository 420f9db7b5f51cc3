# `make demo` and `make test` each set up everything they need in .venv on a fresh machine.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
INSTALLED := $(VENV)/.installed-$(TORCH)

.PHONY: demo test test-all test-slurm install lint clean kernels-triton3.6

demo: install
	$(VENV)/bin/upmix train quickstart --name quickstart --resume
	$(VENV)/bin/upmix generate runs/quickstart "def fibonacci(n):"

# Files of tests go to as many processes as there are cores, at most 4: each has a pool of ranks of its own.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

test: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest $(PARALLEL)

# Every layout of every kind of model too, in both precisions.
test-all: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest $(PARALLEL) -m "full or not full"

# On a SLURM of the tests' own, which is installed first where root and apt allow. Elsewhere they say why they are skipped.
test-slurm: install
	sh tests/slurm/install.sh
	$(VENV)/bin/python -m pytest -rs -m slurm tests/slurm

install: $(INSTALLED)

# torch goes in first: the build chosen in TORCH then satisfies every later requirement.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	$(VENV)/bin/pip install --quiet "$(TORCH)"
	$(VENV)/bin/pip install --quiet --editable ".[test]"
	rm -f $(VENV)/.installed-*
	touch $@

lint: install
	$(VENV)/bin/ruff check .

# Kernels compiled by the oldest Triton that is supported, in front of the installed one: writes its table in docs/.
kernels-triton3.6: install build/triton3.6
	PYTHONPATH=build/triton3.6 $(VENV)/bin/python -m framework.bench.kernels --compile-only > build/kernels-triton3.6.md

build/triton3.6:
	$(VENV)/bin/pip install --quiet --no-deps --target $@ triton==3.6.0

clean:
	rm -rf $(VENV) build
