PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-lowest bench-gpu lint docs package clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,study]"
	touch $@

demo: install
	rm -rf runs/demo runs/demo-photo
	$(BIN)/cssformer predict animals docs/chelsea.jpg --output runs/demo-photo --overlay
	$(BIN)/cssformer train --output runs/demo

test: install
	$(BIN)/pytest -n auto --dist worksteal

# Every check and figure of a GPU, in one file, within eight minutes.
bench-gpu: install
	$(BIN)/python benchmarks/gpu.py --output gpu.txt

# The lowest versions that pyproject.toml claims, in a venv of their own.
test-lowest: .venv-lowest/installed
	.venv-lowest/bin/pytest -q tests/utils tests/model tests/inference/test_predictor.py tests/data/test_stream.py

.venv-lowest/installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e ".[train,formats]" pytest hypothesis
	touch $@

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What is uploaded to an index of packages; docs/releasing.md tells the rest.
package: install
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf .venv .venv-lowest runs
