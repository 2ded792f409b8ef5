# make book: environment, notebooks, HTML.   make test: the tests, in minutes.   make help: everything else.
PYTHON  ?= python3
VENV    ?= .venv
PROFILE ?= quick
# cpu, or 'auto' for the CUDA build that fits this machine's driver (make env TORCH=auto); the last choice is kept
TORCH   ?= $(shell cat $(VENV)/.torch 2>/dev/null || echo cpu)
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.ready-$(TORCH)
export PYTHONUNBUFFERED = 1

.PHONY: help env book test test-all lint bench lock clean
help:
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 10

env: $(STAMP) ## create the environment from requirements.lock
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 5))' || { echo "Python 3.11.5 or later is needed; choose one with: make env PYTHON=/path/to/python3.11"; exit 2; }
	@echo "[1/3] virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet uv==$$(sed -n 's/^uv==//p' requirements.lock)
	@echo "[2/3] torch ($(TORCH) build)"
	@if [ "$(TORCH)" = cpu ] && $(BIN)/python -m pip install --quiet --no-deps "torch==2.13.0+cpu" 2>/dev/null; then :; \
	else $(BIN)/uv pip install --python $(BIN)/python --torch-backend $(TORCH) "torch==2.13.0"; fi
	@echo "[3/3] packages of requirements.lock (about 2 minutes)"
	@$(BIN)/python -m pip install --progress-bar off --no-deps -r requirements.lock | grep --line-buffered -E '^(Downloading|Installing|Successfully)' | cut -c1-100
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@$(BIN)/python -m pip check
	@rm -f $(VENV)/.ready-*; echo $(TORCH) > $(VENV)/.torch; touch $@

book: env ## execute the notebooks (PROFILE=quick or full) and build the HTML
	$(BIN)/ecd book --profile $(PROFILE)

test: env ## run the tests that take minutes
	$(BIN)/python -m pytest

test-all: book ## run all tests, those of the built book among them
	$(BIN)/python -m pytest -m "" --durations=15

lint: env ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: env ## speed of featurization and of the graph network against what else one would use, one core
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python tests/bench_features.py
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -W ignore tests/bench_graphs.py

MAC := platform_machine != 'x86_64' or sys_platform != 'darwin'
NEXT := python_full_version < '3.15'
lock: ## bring requirements.lock in step with pyproject.toml; UPGRADE=--upgrade for the newest of all (needs uv on the PATH)
	cp requirements.lock requirements.lock.new
	uv pip compile --quiet --universal $(UPGRADE) --python-version 3.11.5 --no-header --no-annotate --no-emit-package torch \
	  --extra dev --extra download --extra course pyproject.toml -o requirements.lock.new
	(echo "# Exact versions for Python 3.11 and later, made by 'make lock'. torch is installed apart (Makefile): CPU build by default."; \
	  grep -vE '^(nvidia-|cuda-|triton)' requirements.lock.new | sed -E "s/$(NEXT) and //; s/( ;| and) $(NEXT)//; s/ ; $(MAC)$$//; s/ and \\($(MAC)\\)//; s/ ; \\($(MAC)\\)$$//") > requirements.lock && rm requirements.lock.new

clean: ## remove what the build made (not the environment)
	rm -rf _build book/executed
