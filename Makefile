# make setup | demo | run | test | check        (HEADLESS=1 make demo: no page, exit status tells)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= config.toml
WORKERS ?= 2
SOURCES := bot trainer recipes tests bench

.PHONY: setup demo run test check format tiny clean
.DEFAULT_GOAL := help

help:
	@sed -n '1s/^# //p' Makefile

setup: $(VENV)/.installed

# pip, not uv: it takes the CPU or CUDA build of torch that this machine's index offers, pinned in constraints.txt.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Darkroom needs Python 3.11 or newer; this is %s. Try: make PYTHON=python3.12 setup" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bot,trainer,ray,demo,dev]'
	# imaug brings opencv-python as well, which needs libGL; the headless build of the same files must be the last word.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --force-reinstall opencv-python-headless
	touch $@

demo: setup
	$(BIN)/python -m bot demo $(if $(HEADLESS),--headless)

run: setup
	$(BIN)/python -m bot run --config $(CONFIG)

# A file's tests stay in one process: they share what is costly to make. A process takes up to 1.5 GiB.
test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

format: setup
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

# Trains the small Stable Diffusion that ships in trainer/models/tiny anew (about 85 minutes on two cores).
tiny: setup
	$(BIN)/python -m recipes.tiny.build --out trainer/models/tiny

clean:
	rm -rf $(VENV) demo-data .mypy_cache .ruff_cache .pytest_cache
