# make study   install into .venv, run the narrow-gate study on the three organisms, leave reports in runs/
# make test    install into .venv, lint, types and tests
# make docs    build the documentation site into site/, scripts and pages run
# make lint    ruff, codespell, proselint and mypy alone
# make bench   measure everything in benchmarks/, print the table, write benchmarks/README.md
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check

.PHONY: study test docs lint format bench clean
.DELETE_ON_ERROR:

study: $(VENV)/.installed
	$(BIN)/gatelens study narrow-gate --model organism:gated --out runs/gated
	$(BIN)/gatelens study narrow-gate --model organism:open  --out runs/open
	$(BIN)/gatelens study narrow-gate --model organism:llava --out runs/llava
	@echo "Reports: runs/gated/report.html  runs/open/report.html  runs/llava/report.html"

# A file's tests run in one process: what its fixtures make is made once.
test: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/build.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/codespell README.md CHANGELOG.md Makefile pyproject.toml docs src benchmarks
	$(BIN)/python tests/prose.py
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix src tests benchmarks docs
	$(BIN)/ruff format src tests benchmarks docs

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

# torch goes first and by its pin: an open range would pull the CUDA build, gigabytes of it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs site build .pytest_cache .mypy_cache .ruff_cache
