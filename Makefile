# One word a command; .ci/run calls exactly these.
PYTHON ?= python3
BIN := .venv/bin
# The framework's own distributions: folders of this checkout, each installed as `--editable`; the first has the extras.
FRAMEWORK := . ./client
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"
# What a goal needs of .venv: `runtime`, `tools` (and that), `bench` (and those). Quick where nothing has changed.
SETUP = $(PYTHON) -m scripts.setup_venv --framework $(FRAMEWORK) --level
# Its exit code where all is set up but for some plugins, which it has named.
LEFT_OUT := 3

.DEFAULT_GOAL := help
.PHONY: help python setup tools run test chaos bench check generate format lock clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 10

# Told here, since an old Python cannot even read the set-up.
python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Error: Python 3.11 or later is needed; try: make PYTHON=python3.12 setup"; exit 1; }

setup: python ## .venv with the framework and every plugin under plugins/
	@$(SETUP) runtime

tools: python
	@$(SETUP) tools

# A plugin that cannot be installed keeps no other from starting; the exit code tells, at the end.
run: python ## start everything, run one sample job, go on until Ctrl-C
	@$(SETUP) runtime; code=$$?; \
	if [ $$code = $(LEFT_OUT) ]; then trap : INT TERM; $(IN_VENV) services up || exit; exit $$code; fi; \
	[ $$code = 0 ] || exit $$code; \
	$(IN_VENV) exec services up

# Three at a time (they wait more than they compute), each file whole, since a file's tests share their processes. As
# ordered by name: the long ones go first. Some of them: `make test ARGS=tests/unit`. CI runs tests/stores too.
LEFT_OUT_TESTS = $(if $(CI)$(ARGS),,--ignore=tests/stores)
test: tools ## all tests but tests/stores; programs of the system that they need are installed where apt may, else skipped
	@$(PYTHON) -m scripts.system_packages
	@$(IN_VENV) python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(LEFT_OUT_TESTS) $(ARGS)
	$(if $(LEFT_OUT_TESTS),@echo "Left out: tests/stores (S3, Redis Cluster, Sentinel, TLS, RabbitMQ, generated clients, benchmarks). Run them by: make test ARGS=tests/stores")

# SEED, MINUTES and STACK=naive or naive-best may be given: `make chaos MINUTES=2 SEED=7`.
chaos: tools ## kill, stop and cut off everything for ten minutes, audit every job; then without each pillar of the guarantees
	@$(IN_VENV) python -m tests.chaos --minutes $(or $(MINUTES),10) --seed $(or $(SEED),1) --stack $(or $(STACK),ours) $(if $(STACK),,--pillars)

# ARGS='--only throughput --rounds 5', see `python -m benchmarks --help`; PEERS=all, or some, as `PEERS=mlserver,triton`.
bench: python ## measure this system beside a naive FastAPI + Celery stack, into benchmarks/RESULTS.md
	@$(SETUP) bench
	@$(IN_VENV) python -m benchmarks $(if $(PEERS),--peers '$(PEERS)') $(ARGS)

check: tools ## lint, formatting, types, import rules, Lua, prose, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m scripts.check_lua
	$(BIN)/python -m scripts.check_prose
	$(BIN)/python -m scripts.generate_client --check

generate: tools ## write the generated files anew: the sync client from the asyncio client
	$(BIN)/python -m scripts.generate_client

format: tools ## mend formatting and what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# From a fresh environment, so that nothing gets in that nobody needs; the bounds are pyproject.toml's.
OURS = $(foreach folder,$(FRAMEWORK) $(PLUGINS),$(shell sed -n 's/^name = "\(.*\)"/\1/p' $(folder)/pyproject.toml))
lock: ## write constraints.txt anew, with the newest versions that fit
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT \
		&& $(PYTHON) -m venv "$$tmp" \
		&& "$$tmp/bin/pip" install --disable-pip-version-check '.[dev,bench]' $(filter-out .,$(FRAMEWORK)) $(PLUGINS:%=./%) \
		&& "$$tmp/bin/pip" list --format=freeze --exclude pip --exclude setuptools $(OURS:%=--exclude %) >"$$tmp/lock" \
		&& sort -f "$$tmp/lock" >constraints.txt && rm -rf build client/build plugins/*/build
	@wc -l constraints.txt

clean: ## remove .venv and caches; the private Redis's data stays
	rm -rf .venv .venv-peers .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info client/build client/src/*.egg-info plugins/*/src/*.egg-info
