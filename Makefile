# The verbs a person runs are the jobs that CI runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow check format bench clean youtokentome

demo: $(INSTALLED)
	$(BIN)/product-classificator demo --out demo

test: $(INSTALLED)
	$(BIN)/pytest

test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

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
	rm -rf $(VENV) .ci-venv demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,check]'
	touch $@
