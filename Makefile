# The verbs a person runs are the jobs that CI runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SITE := $(VENV)/.docs-installed
WHEEL := build/wheel

.PHONY: demo test test-slow test-cluster check docs dist format bench clean youtokentome

demo: $(INSTALLED)
	$(BIN)/product-classificator demo --out demo

test: $(INSTALLED)
	$(BIN)/pytest

test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow

test-cluster: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	$(BIN)/pytest -m cluster -n0

check: $(INSTALLED) docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in site/: for reading offline. (With --quiet, --strict would count no warning.)
docs: $(SITE)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Wheel and sdist, in dist/. Tests of imports, commands and rules run on what the wheel holds, away from the sources.
dist: $(SITE)
	rm -rf dist build
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(WHEEL) dist/*.whl
	cp -r tests pyproject.toml $(WHEEL)
	cd $(WHEEL) && PYTHONPATH=$(CURDIR)/$(WHEEL) $(abspath $(BIN))/python -m pytest tests/test_guards.py tests/test_published_api.py tests/cli

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/ablation.py
	$(BIN)/python benchmarks/cleaning.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/review.py
	$(BIN)/python benchmarks/startup.py

# The tokenizer of the published system, to compare ours with; its build needs what is installed here first.
youtokentome: $(INSTALLED)
	-$(BIN)/pip install --quiet --disable-pip-version-check 'cython<3' setuptools wheel
	-$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation youtokentome==1.0.6

clean:
	rm -rf $(VENV) .ci-venv demo site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,check]'
	touch $@

$(SITE): $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs,dist]'
	touch $@
