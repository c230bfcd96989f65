# Everything runs from a fresh clone with Python >= 3.11 and make:
#   make table   the label-noise table on digits (a few minutes on two cores)
#   make test    the tests
#   make test-slurm   those that start a Slurm of one node, where that may be done
#   make lint    ruff, mypy, import-linter
#   make docs    the documentation site, in build/site; DOCS_EXECUTE=false leaves its notebooks unexecuted
# PYTHON picks the interpreter, VENV the environment's folder, PIP_ARGS goes to pip as it is
# (for example a constraints file, or an index that holds CPU-only builds of PyTorch),
# OUT is the table's folder, TABLE_ARGS goes to `mcr2 table` (for example "--methods ce mcr2 redunet").

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
OUT ?= results/quick-digits
TABLE_ARGS ?=
DOCS_EXECUTE ?= true
BIN := $(VENV)/bin

.PHONY: table test test-slurm slow lint format docs clean

table: $(VENV)/.installed
	$(BIN)/mcr2 table --out $(OUT) $(TABLE_ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 8

test-slurm: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slurm tests/test_slurm.py

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev
	DOCS_EXECUTE=$(DOCS_EXECUTE) NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open build/site/index.html"

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The stamps are written last, so that an interrupted installation is taken up again.
SAY = @echo "Installing into $(VENV): on Linux about 6 GB with PyTorch's usual build, for CUDA; PIP_ARGS chooses another (README.md). Interrupted, make goes on."

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("mcr2 needs Python >= 3.11; %s is %s (make PYTHON=... picks another)" % (sys.executable, sys.version.split()[0]) if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(SAY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(SAY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[dev]'
	@touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
