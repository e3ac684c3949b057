# Two commands do all the set-up: `make demo` and `make test`. Only Python, pip and make are needed.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
BENCHMARKS := add_feature memory commits allocators fit_statistics asof_join windows categories row_wise \
              loader shuffle keras_fit xgboost_external
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_USE_PEP517 = 1
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test test-slow check format bench docs clean help

help:
	@echo "make demo       install into $(VENV), build a golden set of real flights, train with and without weather"
	@echo "make test       install into $(VENV), run every test that needs no GPU"
	@echo "make test-slow  the same with the long proofs"
	@echo "make check      ruff and strict types"
	@echo "make bench      the small variant of every benchmark"
	@echo "make docs       install into .venv-docs, build the site of docs/ into site/"

# The stamps record what was installed; they are redone only when pyproject.toml changes.
$(VENV)/.stamp-demo: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.stamp-test: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

demo: $(VENV)/.stamp-demo
	$(BIN)/featurestore demo --output demo-output

test: $(VENV)/.stamp-test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# What the tests of the site and of a tutorial need besides. Of skfolio one file of prices is read, so what it
# depends on stays out.
$(VENV)/.stamp-slow: $(VENV)/.stamp-test
	$(BIN)/python -m pip install --quiet $(DOCS_PINS)
	$(BIN)/python -m pip install --quiet --no-deps skfolio==1.12.2
	@touch $@

test-slow: $(VENV)/.stamp-slow
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --slow $(PYTEST_ARGS)

check: $(VENV)/.stamp-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/.stamp-test
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

bench: $(VENV)/.stamp-test
	@for one in $(BENCHMARKS); do $(BIN)/python benchmarks/$$one.py --small || exit 1; done

# The site needs nothing of the package but its sources: docstrings are read, not imported.
DOCS_PINS = $(shell sed -n 's/^docs = \[\(.*\)\]/\1/p' pyproject.toml | tr -d ',')

.venv-docs/.stamp: pyproject.toml
	@test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet $(DOCS_PINS)
	@touch $@

docs: .venv-docs/.stamp
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "open site/index.html; for its search: $(PYTHON) -m http.server --directory site"

clean:
	rm -rf $(VENV) .venv-docs site build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
