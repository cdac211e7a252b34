# Everything a contributor needs. Each target first makes the virtual environment it needs.
#
#   make demo       the whole story on this machine, then everything stopped again
#   make up / down  the local stack in the background, in HOME_DIR (default .sealstream)
#   make check      format, lint, types, layers, generated schemas, unit tests
#   make test       all tests but those that take minutes
#   make test-long  those that take minutes (those in containers are skipped where Docker is not)
#   make test-containers  those in containers: needs Docker and the images (.ci/containers)
#   make test-kafka the tests of the running system on Apache Kafka (ARGS="-m core": the short way)
#   make mutations  remove every defence of keys and leases in turn: a test must notice
#   make bench      a benchmark: make bench NAME=seal
#   make fmt        format and mend what can be mended

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
HOME_DIR ?= .sealstream
NAME ?=
ARGS ?=
# What meets a broker.
KAFKA_TESTS := tests/contract/test_broker_contract.py tests/contract/test_pump_contract.py \
	tests/integration tests/chaos/test_kills.py tests/chaos/test_zombies.py \
	tests/chaos/test_damage_stack.py tests/kafka --ignore=tests/integration/containers
# The first Python that is new enough; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)

.PHONY: help demo up down check test test-long test-containers test-kafka mutations bench fmt clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n '3,12p'

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Sealstream needs Python 3.11 or newer; found: $$(python3 --version 2>&1 || true)." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; fi
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: install python3-venv." >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

# A virtual environment whose making was interrupted has no pip: made again.
PIP = { $(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv $(VENV); } && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check

# Stamps: what is installed, until pyproject.toml changes.
$(VENV)/.run-stamp: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[local,embed]'
	@touch $@

$(VENV)/.dev-stamp: pyproject.toml $(VENV)/.run-stamp
	$(PIP) --editable '.[local,embed,vault,test,dev]'
	@touch $@

$(VENV)/.bench-stamp: pyproject.toml $(VENV)/.run-stamp
	$(PIP) --editable '.[local,embed,bench]'
	@touch $@

demo: $(VENV)/.run-stamp
	$(BIN)/sealstream demo $(ARGS)

up: $(VENV)/.run-stamp
	$(BIN)/sealstream up --detach --home "$(HOME_DIR)" $(ARGS)

down: $(VENV)/.run-stamp
	$(BIN)/sealstream down --home "$(HOME_DIR)"

check: $(VENV)/.dev-stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m schemas.generate --check
	$(BIN)/pytest -q tests/unit tests/vectors $(ARGS)

test: $(VENV)/.dev-stamp
	$(BIN)/pytest -m "not long and not kafka and not containers" $(ARGS)

test-long: $(VENV)/.dev-stamp
	$(BIN)/pytest -m "long and not kafka" $(ARGS)

test-containers: $(VENV)/.dev-stamp
	$(BIN)/pytest -m "containers and not long" tests/integration/containers $(ARGS)

test-kafka: $(VENV)/.dev-stamp
	$(BIN)/pytest --broker kafka $(KAFKA_TESTS) $(ARGS)

mutations: $(VENV)/.dev-stamp
	$(BIN)/python tests/mutations/run.py $(ARGS)

bench: $(VENV)/.bench-stamp
	@[ -n "$(NAME)" ] || { echo "which one? make bench NAME=seal; see sealstream bench --help" >&2; exit 2; }
	$(BIN)/sealstream bench $(NAME) $(ARGS)

fmt: $(VENV)/.dev-stamp
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
