# Everything runs in .venv, which `make setup` makes.
export PYTHON TORCH
RUN := .venv/bin/python
# test files that run at a time
JOBS ?= 3
# a file's tests share what they make; files in their order, of which tests/conftest.py puts the longest first
TOGETHER = --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder
# threads that wait sleep, or else the processes that run at a time hold each other up
test test-all: export OMP_WAIT_POLICY := passive
# what Python compiles is kept for the processes that come after
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-all lint bench clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' Makefile | expand -t 18
	@echo "PYTHON=python3.12 names the interpreter, TORCH='torch==2.12.0' the torch to install,"
	@echo "ARGS='...' what is passed on by test and test-all (to pytest), bench and demo."

setup: ## make .venv with everything (quick when nothing has changed)
	@bash scripts/setup.sh

demo: setup ## the bundled model answers live; accuracy against tokens per step; a short benchmark with table and plot
	$(RUN) -m benchmarks.demo $(ARGS)

lint: setup ## style, format and import contracts
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -c "from importlinter.cli import lint_imports_command as lint; lint()"

test: lint ## lint and the tests; natively on a GPU where there is one
	$(RUN) -m pytest $(TOGETHER) $(ARGS)

test-all: lint ## as test, with the exhaustive sweeps
	$(RUN) -m pytest --exhaustive $(TOGETHER) $(ARGS)

bench: setup ## measure sampling against the model card's loop
	$(RUN) benchmarks/sampler_throughput.py $(ARGS)

clean: ## remove what was built and installed
	rm -rf .venv build dist *.egg-info .benchmarks .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
