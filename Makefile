# One word a command; .ci/run calls exactly these.
PYTHON ?= python3
BIN := .venv/bin
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
NO_DEPS := $(wildcard plugins/*/no-deps.txt)
# The plugins' names are part of the stamp's: one that is added or taken away calls for a new setup.
STAMP := .venv/.setup-$(shell echo '$(PLUGINS)' | cksum | cut -d' ' -f1)
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup run test chaos bench check format lock clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP) ## .venv with the framework and every plugin under plugins/
	@:

# no-deps.txt: packages of which a plugin needs the files alone. pip's words go to a file that is shown when it fails: make's own output stays readable.
$(STAMP): pyproject.toml client/pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml) $(NO_DEPS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Error: Python 3.11 or later is needed; try: make PYTHON=python3.12 setup"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "Error: Python's venv is missing: apt-get install python3-venv"; exit 1; }
	@echo "setting up .venv with $(words $(PLUGINS)) plugin(s): a minute, the first time ..."
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	@$(PIP) install --constraint constraints.txt --editable ./client --editable '.[dev]' $(PLUGINS:%=--editable ./%) >.venv/setup.log 2>&1 \
		&& { test -z '$(NO_DEPS)' || $(PIP) install --no-deps $(NO_DEPS:%=--requirement %) >>.venv/setup.log 2>&1; } \
		|| { cat .venv/setup.log; echo "Error: make setup failed; pip's reason is above"; exit 1; }
	@rm -f .venv/.setup-*
	@touch $@

run: setup ## start everything, run one sample job, go on until Ctrl-C
	@$(IN_VENV) exec services up

# Two at a time, each file whole, since a file's tests share their processes. As ordered by name: the long ones go first.
test: setup ## all tests
	@$(IN_VENV) python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# SEED, MINUTES and STACK=naive or naive-best may be given: `make chaos MINUTES=2 SEED=7`.
chaos: setup ## kill, stop and cut off everything for ten minutes, then audit every job
	@$(IN_VENV) python -m tests.chaos --minutes $(or $(MINUTES),10) --seed $(or $(SEED),1) --stack $(or $(STACK),ours)

# ARGS='--only throughput --rounds 5', see `python -m benchmarks --help`; PEERS=all, or some, as `PEERS=mlserver,triton`.
bench: setup ## measure this system beside a naive FastAPI + Celery stack, into benchmarks/RESULTS.md
	@$(PIP) install --constraint constraints.txt --editable ./client --editable '.[dev,bench]' >.venv/bench.log 2>&1 || { cat .venv/bench.log; exit 1; }
	@$(IN_VENV) python -m benchmarks $(if $(PEERS),--peers '$(PEERS)') $(ARGS)

check: setup ## lint, formatting, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## mend formatting and what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# From a fresh environment, so that nothing gets in that nobody needs; the bounds are pyproject.toml's.
lock: ## write constraints.txt anew, with the newest versions that fit
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT \
		&& $(PYTHON) -m venv "$$tmp" \
		&& "$$tmp/bin/pip" install --quiet --disable-pip-version-check ./client '.[dev,bench]' $(PLUGINS:%=./%) \
		&& "$$tmp/bin/pip" list --format=freeze --exclude pip --exclude setuptools --exclude libs-service --exclude libs-service-client \
			$(foreach plugin,$(PLUGINS),--exclude $$(sed -n 's/^name = "\(.*\)"/\1/p' $(plugin)/pyproject.toml)) \
			>"$$tmp/lock" \
		&& sort -f "$$tmp/lock" >constraints.txt && rm -rf build client/build plugins/*/build
	@wc -l constraints.txt

clean: ## remove .venv and caches; the private Redis's data stays
	rm -rf .venv .venv-peers .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info client/build client/src/*.egg-info plugins/*/src/*.egg-info
