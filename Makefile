# make up: run the platform. make test: every check. make help: the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON3 ?= python3
# ACCELERATOR=cpu or gpu overrides what the installer sees; ARGS goes to the command run.
ACCELERATOR ?=
ARGS ?=
BIN := .venv/bin
# What is selected by ARGS may lie in the other half.
OR_NONE := $(if $(ARGS),|| [ $$? -eq 5 ])

.NOTPARALLEL:
.PHONY: help install up test test-units test-platform check test-slow bench-gateway bench-serving bench-edge clean

help: ## Say what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

install: ## Make .venv ready (at once where nothing changed)
	@$(PYTHON3) deploy/install.py $(if $(ACCELERATOR),--accelerator $(ACCELERATOR))

up: install ## Run everything in the foreground; Ctrl-C stops all of it
	@exec $(BIN)/maas up $(ARGS)

test: check test-units test-platform ## Format, lint, types, layers and all tests this machine can run

test-units: install ## The tests that need no engine, several at a time
	@echo "== tests that need no engine (pytest)"
	@$(BIN)/python -m pytest -m "not slow and not platform and not engine" \
		-n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
		tests/chaos tests/api tests/unit tests/contract $(ARGS) $(OR_NONE)

test-platform: install ## The tests on real engines: one at a time, as each takes the whole machine
	@echo "== tests on real engines (pytest)"
	@$(BIN)/python -m pytest -m "not slow and (platform or engine)" $(ARGS) $(OR_NONE)

test-slow: install ## What is too slow for make test
	@$(BIN)/python -m pytest -m slow $(ARGS) || [ $$? -eq 5 ]

bench-gateway: install ## The gateway in front of a mock engine, next to its peers
	@$(BIN)/python -m benchmarks.gateway $(ARGS)

bench-serving: install ## The platform next to the bare engine
	@$(BIN)/python -m benchmarks.serving $(ARGS)

bench-edge: install ## A bundle next to llama-cpp-python: ARGS="BUNDLE --gguf FILE --peer PYTHON"
	@$(BIN)/python -m benchmarks.edge $(ARGS)

clean: ## Remove .venv and caches; the platform's state (MAAS_HOME) stays
	@rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
