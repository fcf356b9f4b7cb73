# Everything runs inside .venv, made on first use. PYTHON=... chooses the interpreter that makes it (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench clean

demo: .venv/installed  ## train on the generated shapes data, evaluate, draw
	$(BIN)/python -m dwtriton.train --cfg shapes

test: .venv/installed lint  ## everything CI checks
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/installed  ## loss and gradient on this machine against the released algorithm
	$(BIN)/python benchmarks/loss.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dwtriton needs Python 3.11 or newer; name one with PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
