# Everything runs inside .venv, made on first use. PYTHON=... chooses the interpreter that makes it (3.11 or newer);
# `make gpu PYTHON=python3` runs in that interpreter's own environment instead, and needs no network.
# VENV=... names another environment, made likewise; with `CONSTRAINTS=` it gets the newest versions that pyproject.toml allows.
PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet $(addprefix --constraint ,$(CONSTRAINTS))
DETECTOR := tests/model tests/export tests/benchmarks tests/docs
DATA := tests/data tests/evaluate tests/predict tests/inference
GPU := gpu-tests gpu-kernels gpu-steps gpu-more

.PHONY: demo test test-interpreted test-compiled test-train test-detector test-data test-rest test-all test-interop test-faults lint types bench gpu gpu-tests gpu-kernels gpu-steps gpu-more clean

demo: $(VENV)/installed  ## train on the generated shapes data, evaluate, draw
	$(BIN)/python -m dwtriton.train --cfg shapes

test: $(VENV)/installed lint  ## everything CI checks, in parts of one thread each, two of them at a time
	OMP_NUM_THREADS=1 $(MAKE) --jobs 2 types test-train test-interpreted test-compiled test-detector test-rest test-data

test-interpreted:  ## the kernels in Triton's interpreter, which has to be chosen before Triton is imported
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -m "gpu and not slow"

test-compiled:  ## the kernels compiled for all targets, and what is around them
	$(BIN)/python -m pytest tests/kernels

test-train:
	$(BIN)/python -m pytest tests/train

test-detector:
	$(BIN)/python -m pytest $(DETECTOR)

test-data:
	$(BIN)/python -m pytest $(DATA)

test-rest:
	$(BIN)/python -m pytest --ignore tests/kernels --ignore tests/train $(addprefix --ignore ,$(DETECTOR) $(DATA))

test-all: $(VENV)/installed lint types test-interop  ## the same with thousands of larger examples and every kernel binary: hours
	DWTRITON_TEST_ALL=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -m gpu
	DWTRITON_TEST_ALL=1 $(BIN)/python -m pytest -m "slow or not slow"

test-interop: $(VENV)/installed  ## installs the libraries of docs/interop.md, and runs the examples with them
	$(INSTALL) --editable '.[interop]'
	$(BIN)/python -m pytest tests/docs/test_interop.py

test-faults: $(VENV)/installed  ## kills 60 runs at random moments, resumes them and compares every bit; KILLS=... sets another number
	$(BIN)/python -m tests.support.kills --kills $(or $(KILLS),60)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed  ## mypy on the public names and what they are made of: half a minute, a second when repeated
	$(BIN)/mypy

bench: $(VENV)/installed  ## loss and gradient on this machine against the alternatives: about three minutes on a CPU
	$(BIN)/python -m benchmarks.loss

ifeq ($(origin PYTHON),file)
GPU_PYTHON := $(BIN)/python
$(GPU): $(VENV)/installed
else
GPU_PYTHON := $(PYTHON)
endif
$(GPU): export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
gpu:  ## on a machine with a GPU: the four slices below, one after another, whatever becomes of each (docs/gpu.md)
	@code=0; for slice in $(GPU); do $(MAKE) --no-print-directory $$slice || code=1; done; exit $$code

gpu-tests:  ## the tests of the GPU, in 8 processes: at most 3 minutes
	$(GPU_PYTHON) -m benchmarks.gpu_tests --minutes $(or $(MINUTES),3)

gpu-kernels:  ## tuning, the loss and its baselines: at most 4 minutes; MINUTES=... sets another limit
	$(GPU_PYTHON) -m benchmarks.slices kernels --minutes $(or $(MINUTES),4)

gpu-steps:  ## training steps of r50_1x, ours and others': at most 4 minutes
	$(GPU_PYTHON) -m benchmarks.slices steps --minutes $(or $(MINUTES),4)

gpu-more:  ## other configs, small batches, inference: 4 minutes each time, until nothing is missing
	$(GPU_PYTHON) -m benchmarks.slices more --minutes $(or $(MINUTES),4)

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dwtriton needs Python 3.11 or newer; name one with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
