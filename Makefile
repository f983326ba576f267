# Every target sets itself up: the first one that needs it makes .venv and installs kvchat into it.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := kvchat tests benchmarks models/demo/recipe models/fetch.py

.DEFAULT_GOAL := help
.PHONY: help setup fmt lint types test test-compile test-gpu test-model check demo demo-model model chat bench
.PHONY: first-card bench-card bench-decode bench-kernels bench-rivals results results-demo clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "kvchat needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up .venv (once; torch is the large part)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

setup: .venv/.ready  ## virtual environment with kvchat and the developer tools

fmt: setup  ## format the code
	@$(BIN)/ruff format $(SOURCES)
	@$(BIN)/ruff check --fix --quiet $(SOURCES)

lint: setup  ## style and imports
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)

types: setup  ## mypy
	@$(BIN)/mypy

test: setup  ## the tests (CPU, no network)
	@$(BIN)/python -m pytest -m 'not gpu and not model' -n auto

test-gpu: setup  ## the tests that need a CUDA device
	@TRITON_INTERPRET=0 $(BIN)/python -m pytest -m gpu

test-model: setup  ## the tests that need real checkpoints (KVCHAT_MODELS=FOLDER, or models/)
	@$(BIN)/python -m pytest -m model

test-compile: setup  ## compile every kernel for cards that are not here
	@$(BIN)/python tests/kernels/compiling.py

check: lint types test  ## lint, types and tests

# The second act wants a model of 98 MB: where it cannot be had, a line says so and that is all.
demo: setup  ## read a long document, compress it, answer questions, count the right ones
	@$(BIN)/kvchat demo --act 1
	@$(BIN)/python models/fetch.py || [ $$? -eq 1 ]
	@$(BIN)/kvchat demo --act 2

model: setup  ## bring a small chat model, SmolLM2-135M-Instruct (98 MB), into models/
	@$(BIN)/python models/fetch.py

demo-model: setup  ## train the demo model again (hours on two cores; resumable)
	@$(BIN)/python models/demo/recipe/train.py

chat: setup  ## chat about the sample document
	@$(BIN)/kvchat $(if $(FILE),--file $(FILE),--file samples/valley.txt)

bench: setup  ## quick memory and latency check of this machine
	@$(BIN)/kvchat bench --quick

results: setup  ## measure docs/results.md again (MODELS and TEXTS are folders; hours; goes on if stopped)
	@$(BIN)/python benchmarks/real_models.py --texts $(TEXTS) \
	  $(MODELS)/qwen2.5-coder-0.5b $(MODELS)/smollm2-135m

results-demo: setup  ## measure docs/results-demo.md again (under an hour on two cores; goes on if stopped)
	@$(BIN)/python benchmarks/results.py

bench-kernels: setup  ## every kernel against its twin and the card's limits (CUDA device)
	@$(BIN)/python benchmarks/kernels.py

first-card: setup  ## numbers, kernels and speed of a card that kvchat meets first (7 minutes)
	@$(BIN)/python benchmarks/first_card.py

bench-card: setup  ## writing speed against transformers (CUDA device)
	@$(BIN)/python benchmarks/card.py

bench-decode: setup  ## decode speed against transformers, and of weights in few bits (minutes)
	@$(BIN)/python benchmarks/decode.py
	@$(BIN)/python benchmarks/table.py

bench-rivals: setup  ## decoding on a CPU beside transformers and llama.cpp (RIVALS_PYTHON, KVCHAT_MODELS)
	@$(BIN)/python benchmarks/decode_rivals.py

clean:  ## remove the virtual environment and caches
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
