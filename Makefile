# Three commands set everything up and run it: `make demo`, `make table1` and `make test`. Needs Python 3.11+, make and git.
PYTHON ?= python3
seeds ?=
target := $(if $(seeds),reports/cpu-seeds$(seeds)/table1.pdf,reports/table1.pdf)
bin := .venv/bin
SHELL := /bin/bash

# Python keeps what it compiled, whatever the shell says: else each of some hundred processes compiles torch anew (4 s).
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo table1 test test-all lint bench determinism portability lock

# Build table 1 (seeds=1 for one seed). Goes on where an earlier build was stopped.
table1: .venv/ready
	PATH="$(CURDIR)/$(bin):$$PATH" polygrain doctor --unlock
	PATH="$(CURDIR)/$(bin):$$PATH" snakemake --cores all --rerun-incomplete $(target)

# The same table at smoke scale with one seed: the whole path in minutes. Its numbers mean nothing.
demo: .venv/ready
	PATH="$(CURDIR)/$(bin):$$PATH" snakemake --cores all --rerun-incomplete reports/smoke-seeds1/table1.pdf

# Lint, types and every kind of test, the workflow end to end at smoke scale included; what CI runs.
test: lint
	PATH="$(CURDIR)/$(bin):$$PATH" pytest -n 2 --dist worksteal -m "not long"

# `test`, then the long rest, test by test: before a record is published.
test-all: test
	PATH="$(CURDIR)/$(bin):$$PATH" pytest -n 2 --dist worksteal -m long -v

lint: .venv/ready
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/lint-imports
	$(bin)/snakefmt --check Snakefile workflow
	PATH="$(CURDIR)/$(bin):$$PATH" snakemake --lint

# Where the time of a training step goes, what a job costs to start, what the same bits cost, and speed and memory
# against the library lightly.
bench: .venv/ready
	$(bin)/python workflow/scripts/bench.py
	$(bin)/python workflow/scripts/bench.py --determinism --steps 20
	$(bin)/python workflow/scripts/versus.py

# Each method's run at cpu scale rebuilt under more than 200 SIGKILLs at random moments, every byte compared with dvc.lock:
# 153 CPU-minutes.
determinism: .venv/ready
	$(bin)/python workflow/scripts/determinism.py --jobs 2

# The same bytes natively and on emulated processors of two makers; about an hour. Needs qemu-user.
portability: .venv/ready
	$(bin)/python workflow/scripts/portability.py

# The virtual environment. uv, itself pinned in the lock, installs the rest from it, five times faster than pip.
.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "polygrain needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -c 'import shutil, sys; sys.exit(shutil.disk_usage(".").free < 6.7e9 and "the environment takes 7 GB, less is free here; free space first")'
	$(PYTHON) -m venv .venv
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.txt
	$(bin)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .venv/uv.txt
	$(bin)/uv pip install --quiet --python $(bin)/python --require-hashes -r requirements.lock
	$(bin)/uv pip install --quiet --python $(bin)/python --no-deps --no-build-isolation --editable .
	touch $@

# Resolve every dependency anew. No index or host name is written.
lock:
	$(bin)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade \
	  --generate-hashes --no-header --no-annotate --no-emit-index-url --quiet --output-file requirements.lock
