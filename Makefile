# Everything runs inside .venv, made on first use. PYTHON=... chooses the interpreter that makes it (3.11 or newer);
# `make gpu PYTHON=python3` runs in that interpreter's own environment instead, and needs no network.
PYTHON ?= python3
BIN := .venv/bin
DETECTOR := tests/model tests/export tests/benchmarks tests/docs
DATA := tests/data tests/evaluate tests/predict tests/inference

.PHONY: demo test test-interpreted test-compiled test-train test-detector test-data test-rest test-all lint bench gpu gpu-kernels gpu-detector clean

demo: .venv/installed  ## train on the generated shapes data, evaluate, draw
	$(BIN)/python -m dwtriton.train --cfg shapes

test: .venv/installed lint  ## everything CI checks, in parts of one thread each, two of them at a time
	OMP_NUM_THREADS=1 $(MAKE) --jobs 2 test-interpreted test-train test-detector test-compiled test-rest test-data

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

test-all: .venv/installed lint  ## the same with thousands of larger examples and every kernel binary: hours
	DWTRITON_TEST_ALL=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -m gpu
	DWTRITON_TEST_ALL=1 $(BIN)/python -m pytest -m "slow or not slow"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/installed  ## loss and gradient on this machine against the alternatives: about three minutes on a CPU
	$(BIN)/python -m benchmarks.loss

ifeq ($(origin PYTHON),file)
GPU_PYTHON := $(BIN)/python
gpu-kernels gpu-detector: .venv/installed
else
GPU_PYTHON := $(PYTHON)
endif
gpu-kernels gpu-detector: export PYTHONPATH := $(CURDIR)
gpu-kernels gpu-detector: export DWTRITON_CACHE := $(CURDIR)/dwtriton/kernels/tuned
gpu: gpu-kernels  ## on a machine with a GPU: its tests, the tuning of the kernels, all benchmarks
	$(MAKE) gpu-detector

gpu-kernels:  ## the first half: tests, tuning, the loss
	$(GPU_PYTHON) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make gpu: PyTorch finds no GPU")'
	$(GPU_PYTHON) -m pytest -m gpu
	$(GPU_PYTHON) -m dwtriton.tune --check
	$(GPU_PYTHON) -m benchmarks.loss --device cuda

gpu-detector:  ## the second half: training steps and inference of whole detectors; if the first fails, both are run
	$(GPU_PYTHON) -m benchmarks.train_step --device cuda; code=$$?; \
	$(GPU_PYTHON) -m benchmarks.predict --device cuda && exit $$code

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dwtriton needs Python 3.11 or newer; name one with PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
