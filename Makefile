# make demo | run | setup | test | test-slow | test-all | check | format | messages | tour | tiny | clean   (HEADLESS=1 make demo: no page)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= config.toml
# Compiled modules are kept, also where the environment forbids it: each test process would compile all modules and tests again.
export PYTHONDONTWRITEBYTECODE :=
WORKERS ?= 4
SOURCES := bot trainer recipes tests bench
# Twice as many processes as two cores, because many tests wait; each takes up to 1.5 GiB. A file's tests stay in one process:
# they share what is expensive to make. The longest files start first (tests/durations.json).
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: setup demo run test test-slow test-all check format messages tour tiny clean
.DEFAULT_GOAL := help

help:
	@sed -n '1s/^# //p' Makefile

# What each command needs is installed before it runs: `caption_dataset` no simulated Discord, `demo` no Ray and no development tools.
setup: $(VENV)/.setup
demo: $(VENV)/.demo
	$(BIN)/python -m bot demo $(if $(HEADLESS),--headless)

run: $(VENV)/.run
	$(BIN)/python -m bot run --config $(CONFIG)

$(VENV)/.run: EXTRAS := bot,trainer
$(VENV)/.demo: EXTRAS := bot,trainer,demo
$(VENV)/.setup: EXTRAS := bot,trainer,ray,demo,dev

# pip, not uv: it takes the CPU or CUDA build of torch that this machine's index offers, pinned in constraints.txt.
# imaug brings opencv-python as well, which needs libGL; the headless build of the same files must be the last word.
$(VENV)/.run $(VENV)/.demo $(VENV)/.setup: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Darkroom needs Python 3.11 or newer; this is %s. Try: make PYTHON=python3.12 setup" % sys.version.split()[0])'
	@echo "Installing the libraries into $(VENV). The first time pip downloads about 0.7 GB with the CPU build of torch, about"
	@echo "3.5 GB with the CUDA build (at 100 Mbit/s: one or five minutes), and unpacks them for two minutes or so."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --force-reinstall opencv-python-headless
	@touch $@ $(if $(findstring dev,$(EXTRAS)),$(VENV)/.run $(VENV)/.demo)

# The fast tests. COVERAGE=1: and how many lines and branches no test reaches in the workers of pytest: what only child processes
# run (bots that are killed, trainers) counts as not reached.
test: setup
	$(PYTEST) -m "not slow" $(if $(COVERAGE),--coverage)

# The others: those that train for real, and those that kill real bots.
test-slow: setup
	$(PYTEST) -m slow

test-all: setup
	$(PYTEST)

check: setup
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

format: setup
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

# Brings the catalogs of translations up to date with the sentences in the source; what is new in them is empty.
messages: setup
	@mkdir -p build
	$(BIN)/python -m babel.messages.frontend extract --mapping-file=pyproject.toml --keyword=_ --keyword=N_ --keyword=ngettext:1,2 --no-location --sort-output --output=build/darkroom.pot bot trainer
	$(BIN)/python -m babel.messages.frontend update --input-file=build/darkroom.pot --output-dir=trainer/protocol/locale --domain=darkroom --ignore-obsolete --no-fuzzy-matching --width=120

# docs/tour.md and the moving picture of the README; needs chromium, and a font with Chinese letters.
tour: setup
	$(BIN)/python -m recipes.tour

# Trains the small Stable Diffusion that ships in trainer/models/tiny again (about 85 minutes on two cores).
tiny: setup
	$(BIN)/python -m recipes.tiny.build --out trainer/models/tiny

clean:
	rm -rf $(VENV) demo-data build .mypy_cache .ruff_cache .pytest_cache
