# make demo     validate the shipped model, embed real audio, score it beside floors and a baseline: demo/
# make test     every test
# make lint     ruff
# make wheel    build dist/*.whl, install it in an environment of its own, and use it there
# make clean    remove the environments and what was built
#
# The first of them sets up .venv, with everything installed, the official HEAR tools included.
# PYTHON=python3.12 make test uses that Python.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet
READY := $(VENV)/.ready
WHEEL_VENV := .venv-wheel

.PHONY: install demo test lint wheel clean
install: $(READY)

$(READY): setup.cfg pyproject.toml requirements-hear.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "torch<2.15" torchaudio "setuptools<82"
	$(PIP) -r requirements-hear.txt
	$(PIP) --no-deps heareval==2021.1.3 hearbaseline==2021.1.1
	$(PIP) --no-deps --ignore-requires-python hearvalidator==2021.0.6
	$(PIP) --editable ".[train,eval,parquet,plot,onnx,dev]"
	touch $@

demo: $(READY)
	PYTHONPATH=$$($(BIN)/python -m hear_jepa.evaluation.hear_eval_kit) $(BIN)/hear-validator hear_jepa
	$(BIN)/hear-jepa embed tests/tasks/percussion_events-v1-small --kind timestamps --out demo/timestamps.npz --overwrite
	$(BIN)/hear-jepa evaluate --tasks-dir tests/tasks --out demo/evaluation \
		--models hear_jepa logmel-stats untrained hearbaseline
	@cat demo/evaluation/results.md

test: $(READY)
	$(BIN)/python -m pytest --quiet

lint: $(READY)
	$(BIN)/ruff check .

wheel: $(READY)
	rm -rf build dist $(WHEEL_VENV)
	$(BIN)/python -m build --wheel --outdir dist . > /dev/null
	$(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python -m pip install --quiet dist/*.whl
	cd / && $(CURDIR)/$(WHEEL_VENV)/bin/python $(CURDIR)/.ci/use_wheel.py

clean:
	rm -rf $(VENV) $(WHEEL_VENV) build dist demo *.egg-info
