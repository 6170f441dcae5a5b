# make up: run the platform. make test: every check. make help: the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON3 ?= python3
# ACCELERATOR=cpu or gpu overrides what the installer sees; ARGS goes to the command run.
ACCELERATOR ?=
ARGS ?=
BIN := .venv/bin
# What needs no engine runs several at a time; what is on real engines one at a time, as each takes
# the whole machine.
FOLDERS := $(if $(filter tests/%,$(ARGS)),,tests/chaos tests/api tests/unit tests/contract)
UNITS := $(BIN)/python -m pytest -m "not slow and not platform and not engine" \
	-n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(FOLDERS) $(ARGS)
PLATFORM := $(BIN)/python -m pytest -m "not slow and (platform or engine)" $(ARGS)
# Exit codes of the two: what is selected by ARGS may lie in one of them (5: nothing selected).
PASSED := $(if $(ARGS),00|05|50,00)

.NOTPARALLEL:
.PHONY: help install up test test-units test-platform check test-slow bench-gateway bench-serving bench-edge clean

help: ## Say what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

install: ## Make .venv ready (at once where nothing changed)
	@$(PYTHON3) deploy/install.py $(if $(ACCELERATOR),--accelerator $(ACCELERATOR))

up: install ## Run everything in the foreground; Ctrl-C stops all of it
	@exec $(BIN)/maas up $(ARGS)

test: check ## Format, lint, types, layers and all tests this machine can run
	@echo "== tests that need no engine (pytest)"; units=0; $(UNITS) || units=$$?; \
	echo "== tests on real engines (pytest)"; platform=0; $(PLATFORM) || platform=$$?; \
	case $$units$$platform in $(PASSED)) ;; *) exit 1 ;; esac

test-units: install ## The tests that need no engine
	@$(UNITS)

test-platform: install ## The tests on real engines
	@$(PLATFORM)

check: install ## The gates without the tests
	@echo "== format (ruff format)"
	@$(BIN)/ruff format --check .
	@echo "== lint (ruff check)"
	@$(BIN)/ruff check .
	@echo "== layers (import-linter)"
	@$(BIN)/lint-imports --no-logo
	@echo "== types (pyright)"
	@$(BIN)/pyright

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
