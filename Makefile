# `make demo` and `make test` set up what they need by themselves: a virtual environment in .venv, built from
# hash-locked requirements. llama.cpp is compiled once (about 8 minutes on 2 cores) and then comes from pip's cache.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo run test test-all test-processors test-clients lint lock bench clean
help:           ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## ?/\t/' | expand -t 12

$(VENV)/.app: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "flashmoe-tui needs Python 3.11, 3.12 or 3.13: install one, or say make PYTHON=/path/to/python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV) (the first time compiles llama.cpp: some minutes)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@$(BIN)/python -m compileall -q backends flashmoe tui  # the first start is as quick as the later ones
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.app
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

$(VENV)-clients/.done: requirements-clients.txt $(VENV)/.dev
	@test -x $(VENV)-clients/bin/python || $(BIN)/python -m venv $(VENV)-clients
	@$(VENV)-clients/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-clients.txt
	@touch $@

demo: $(VENV)/.app  ## chat with the model that comes with the project: no download, no network
	@$(BIN)/flashmoe-tui demo

run: $(VENV)/.app   ## the app
	@$(BIN)/flashmoe-tui

test: $(VENV)/.dev  ## the test suite
	$(BIN)/python -m pytest

test-all: $(VENV)/.dev $(VENV)-clients/.done  ## the test suite with the tests that take minutes
	$(BIN)/python -m pytest -m ''

# Everything beyond the kernels that each x86 has; numpy doesn't mind names of those that this processor lacks.
test-processors: $(VENV)/.dev  ## the tests of pictures again, without numpy's AVX2 and AVX-512 kernels
	NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4 AVX512_ICL AVX512_SPR" OPENBLAS_CORETYPE=Nehalem $(BIN)/python -m pytest -m picture

test-clients: $(VENV)-clients/.done  ## `serve` driven by other people's libraries (330 MB of them)
	$(BIN)/python -m pytest -m clients

lint: $(VENV)/.dev  ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini benchmarks/*.py
	$(BIN)/lint-imports

lock: $(VENV)/.dev  ## pin every dependency with hashes again
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command "make lock" pyproject.toml -o requirements.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command "make lock" --extra dev -c requirements.txt pyproject.toml -o requirements-dev.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command "make lock" --group clients -o requirements-clients.txt

clean:          ## remove the environment and caches
	rm -rf $(VENV) $(VENV)-clients .mypy_cache .ruff_cache .pytest_cache
