# One virtual environment serves every target; it is made on first use and kept until what it is made from changes.
#
#   make test            lint, types, layers and the fast tests
#   make test-all        all of that and the slow, distributed, sanitizer and chaos tests
#   make test-gpu        the tests that need a CUDA device or Transformer Engine
#   make bench           preparation, packing, assembly, fusion and patches against their peers
#   make demo            a first run, start to finish, on any laptop
#   make docs            the documentation as a site
#   make study-demo      a branch study of a tiny model: plan, run, report
#
# Where a CUDA build of torch is installed already (an NGC image, a cluster's module), keep it:
#   make test PYTHON=python3 VENV_FLAGS=--system-site-packages

VENV       ?= .venv
VENV_FLAGS ?=
PYTEST_ARGS ?=
# Tests of one file run in one process: they share what their fixtures made. More processes than four only share the cores,
# since many tests start ranks of their own.
WORKERS ?= -n logical --maxprocesses 4 --dist loadfile
# The first interpreter that runs and is new enough: a name on PATH may be a shim without a Python behind it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo "$$p"; break; fi; done)

BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check
STAMP  := $(VENV)/.installed
SOURCES := $(wildcard csrc/*.cpp csrc/*.h csrc/cuda/*)

.DEFAULT_GOAL := install
.DELETE_ON_ERROR:
.PHONY: install demo study-demo test test-all test-gpu bench docs lint format clean

install: $(STAMP)

$(BIN)/python:
	@test -n "$(PYTHON)" || \
		{ echo "make: found no Python 3.11 or newer; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "==> making $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv $(VENV_FLAGS) "$(VENV)"

# Order-only on the interpreter: its own date says nothing about what is installed.
$(STAMP): constraints.txt pyproject.toml setup.py $(SOURCES) | $(BIN)/python
	@echo "==> 1/4 build tools"
	@$(PIP) install -c constraints.txt setuptools wheel pybind11
	@if grep -qs 'include-system-site-packages = true' "$(VENV)/pyvenv.cfg" \
		&& $(BIN)/python -c 'import torch' 2>/dev/null; then \
		echo "==> 2/4 torch: keeping the system's" && \
		echo "==> 3/4 dependencies, by the ranges of pyproject.toml" && \
		$(PIP) install --no-build-isolation --editable '.[dev]'; \
	else \
		echo "==> 2/4 torch (the first time: minutes)" && \
		$(PIP) install -c constraints.txt torch && \
		echo "==> 3/4 dependencies, as pinned in constraints.txt" && \
		$(PIP) install --no-build-isolation -r constraints.txt; \
	fi
	@echo "==> 4/4 megatron_vlm and its native operators"
	@$(PIP) install --no-build-isolation --no-deps --editable .
	@$(BIN)/python -c 'from megatron_vlm.ops.native import native_operators; native_operators()'
	@$(BIN)/python -c 'from megatron_vlm.ops.kernels import cuda_kernels; cuda_kernels()'
	@touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo/run.py

study-demo: $(STAMP)
	PATH="$(abspath $(BIN)):$$PATH" bash examples/studies/run_demo.sh

# The site of the documentation, in build/site.
docs: $(STAMP)
	$(BIN)/python docs/generate_configuration.py
	$(BIN)/python docs/generate_cli.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open build/site/index.html"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(BIN)/python -m pytest $(WORKERS) $(PYTEST_ARGS)

test-all: lint
	$(BIN)/python -m pytest -m "not gpu and not te" $(WORKERS) $(PYTEST_ARGS)

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m "gpu or te" $(PYTEST_ARGS)

# What the README's table of operators is made from; one thread, a few minutes.
bench: $(STAMP)
	@for name in packing assemble fusion patchify reader preprocess; do \
		echo "== benchmarks/bench_$$name.py"; \
		OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/bench_$$name.py || exit; \
	done

# The virtual environment stays, without its stamp: the next target installs again what is missing.
clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	rm -f megatron_vlm/_native*.so megatron_vlm/_kernels.so $(STAMP)
	find megatron_vlm tests examples benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
