# One word a command; .ci/run calls exactly these.
PYTHON ?= python3
BIN := .venv/bin
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
STAMP := .venv/.setup-done

.DEFAULT_GOAL := help
.PHONY: help setup run test check format lock clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP) ## .venv with the framework and every plugin under plugins/

# Not quiet about failures: pip's output goes to a file that is shown when it fails.
$(STAMP): pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; this is $$($(PYTHON) --version). Name another: make PYTHON=python3.12 setup"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv is missing: apt-get install python3-venv"; exit 1; }
	@echo "setting up .venv ($(words $(PLUGINS)) plugins) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[dev]' $(PLUGINS:%=--editable ./%) >.venv/setup.log 2>&1 \
		|| { cat .venv/setup.log; echo "make setup failed: see above"; exit 1; }
	@touch $@

run: setup ## start everything, score one sample, run until Ctrl-C
	@PATH="$(CURDIR)/$(BIN):$$PATH" exec $(BIN)/services up

test: setup ## all tests
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest

check: setup ## lint, formatting, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## mend formatting and what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup ## write constraints.txt anew from what is installed
	@$(BIN)/python -m pip freeze --exclude-editable 2>/dev/null | grep -E '^[A-Za-z0-9._-]+==' >constraints.txt

clean: ## remove .venv and caches; the private Redis's data stays
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build *.egg-info plugins/*/src/*.egg-info
