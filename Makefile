# make demo     check the shipped model with hear-validator, embed real audio, score it beside baselines: demo/
# make test     run every test
# make lint     ruff (rules and format) and basedpyright (types)
# make wheel    build the sdist and the wheel, install the wheel in an environment of its own, and use it there
# make clean    remove the environments and what was built
#
# The first of them sets up .venv with everything installed, the official HEAR tools included.
# PYTHON=python3.12 make test          takes that Python
# TORCH="torch==2.4.*" make test       takes that torch

PYTHON ?= python3
# torchaudio 2.11.0, the newest on some indexes, refuses to be imported beside torch 2.15
TORCH ?= torch<2.15
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet
READY := $(VENV)/.ready
WHEEL_VENV := .venv-wheel

.PHONY: install demo test lint wheel clean
install: $(READY)

$(READY): setup.cfg pyproject.toml requirements-hear.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)" torchaudio -r requirements-hear.txt
	$(PIP) --no-deps heareval==2021.1.3 hearbaseline==2021.1.1
	$(PIP) --no-deps --ignore-requires-python hearvalidator==2021.0.6
	$(PIP) --editable ".[train,eval,plot,label,parquet,lance,ray,remote,hub,onnx,dev]"
	touch $@

demo: $(READY)
	PYTHONPATH=$$($(BIN)/python -m hear_jepa.evaluation.hear_eval_kit) $(BIN)/hear-validator hear_jepa
	$(BIN)/hear-jepa embed tests/tasks/percussion_events-v1-small --kind timestamps --out demo/timestamps.npz --overwrite
	$(BIN)/hear-jepa evaluate --tasks-dir tests/tasks --out demo/evaluation --models hear_jepa logmel-stats untrained
	@cat demo/evaluation/results.md

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet --numprocesses $(JOBS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

wheel: $(READY)
	rm -rf build dist $(WHEEL_VENV)
	$(BIN)/python -m build --outdir dist . > /dev/null
	$(BIN)/python -m build --wheel --outdir build/from-clone . > /dev/null
	$(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python -m pip install --quiet "$(TORCH)" dist/*.whl
	cd / && $(CURDIR)/$(WHEEL_VENV)/bin/python $(CURDIR)/.ci/use_wheel.py $(CURDIR) \
		$(CURDIR)/dist/*.whl $(CURDIR)/build/from-clone/*.whl
	rm -rf $(WHEEL_VENV)

clean:
	rm -rf $(VENV) $(WHEEL_VENV) build dist demo *.egg-info
