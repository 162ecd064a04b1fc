# The commands that people and CI use. `make` alone lists them.
PYTHON ?= python3
VENV   := .venv
TEST_PROCESSES ?= 2
BIN    := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)

.PHONY: help install run demo test test-long test-slow check bench lock clean

help:            ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## make .venv with the exact versions of requirements.lock

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "modelmill needs Python 3.11 or newer: make PYTHON=python3.11")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo 'Python cannot make environments here. On Debian: apt-get install python3-venv'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	$(BIN)/python -m pip check
	@touch $@

run: install     ## run the line for every model, and show what it made
	mill run

demo: install    ## play the whole loop on the shipped data: learn, serve, watch, learn again
	python -m flows.demo

# Clients that others wrote, each in an environment of its own: what they depend on does not go with ours.
.venv-clients/%/.installed: tests/clients/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check --quiet --requirement $<
	@touch $@

CLIENTS := $(patsubst tests/clients/%.txt,.venv-clients/%/.installed,$(wildcard tests/clients/*.txt))

# Servers to measure ours beside.
.venv-rivals/%/.installed: tests/benchmarks/rivals/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check --quiet --requirement $<
	@touch $@

# Several tests wait for real servers, killed processes or each other, on machines that others use too. What failed
# in the crowd is asked once more, alone; what fails again has failed. Both runs stand in the log.
test: install $(CLIENTS)  ## run the tests
	python -m pytest -n $(TEST_PROCESSES) --dist loadfile || { [ $$? = 1 ] \
	  && echo 'What failed is asked once more, alone:' && python -m pytest --last-failed --last-failed-no-failures none; }

test-long: install $(CLIENTS)  ## run the tests that go further into what `test` tests
	python -m pytest -m long -n $(TEST_PROCESSES) --dist loadfile || { [ $$? = 1 ] \
	  && echo 'What failed is asked once more, alone:' \
	  && python -m pytest -m long --last-failed --last-failed-no-failures none; }

test-slow: install $(CLIENTS)  ## run every test there is, the shipped line and simulations too
	python -m pytest -m '' --timeout 3600

check: install   ## style, types, and who may import whom
	ruff check
	ruff format --check
	mypy
	lint-imports

bench: install   ## measure what the README says, and print the figures
	python -m tests.benchmarks.training
	python -m tests.benchmarks.clean
	python -m tests.benchmarks.noop
	python -m tests.benchmarks.parallel
	python -m tests.benchmarks.serving --only throughput latency journal swaps accuracy
	python -m tests.benchmarks.monitor
	python -m tests.benchmarks.generate
	python -m tests.benchmarks.generate --recipe translation

lock:            ## resolve pyproject.toml anew into requirements.lock, as near to the old versions as it allows
	folder=$$(mktemp -d) && $(PYTHON) -m venv $$folder \
	  && $$folder/bin/python -m pip install --quiet --constraint requirements.lock '.[dev]' \
	  && { grep '^#' requirements.lock; $$folder/bin/python -m pip freeze --exclude modelmill | sed 's/+cpu$$//'; } \
	       > requirements.lock.new \
	  && mv requirements.lock.new requirements.lock; rm -rf $$folder

clean:           ## remove what tools leave behind; data, models and the environment stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
	find flows tasks tests -name __pycache__ -type d -prune -exec rm -rf {} +
