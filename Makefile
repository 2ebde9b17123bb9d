# make demo    installs into .venv and hashes the standard library's own folder in parallel
# make test    installs into .venv with the test extra, and runs the tests
# make check   linters, types, the direction of imports
# make bench   our figures beside the peers' (installs the peers)
# make soak    a mixed load with random kills, for SOAK_SECONDS
# make fuzz    what comes over a link, fuzzed for FUZZ_SECONDS each

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST_ARGS ?= -n 4 -m "not slow"
SOAK_SECONDS ?= 600
SOAK_SEED ?= 1
FUZZ_SECONDS ?= 60

.PHONY: demo test check bench soak fuzz clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A stamp for each set of extras: installed again only when pyproject.toml has changed.
$(VENV)/installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@

demo: $(VENV)/installed-examples
	$(BIN)/python examples/merkle.py "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"

# Compiled first: the tests start thousands of processes, and where none may write bytecode each would compile anew.
test: $(VENV)/installed-test
	$(BIN)/python -m compileall -q domains scheduler ipc tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# The types are checked as users get them: on the package as it is installed, rooms mapped under one name.
check: $(VENV)/installed-test $(VENV)/installed-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build $(VENV)/package && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/package .
	cd $(VENV)/package && ../bin/python -m mypy --config-file $(CURDIR)/pyproject.toml --cache-dir=../mypy-cache -p domains
	$(BIN)/python -m pytest -q tests/test_imports.py

bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks

soak: $(VENV)/installed-test
	$(BIN)/python -m tests.faults.soak --seconds $(SOAK_SECONDS) --seed $(SOAK_SEED)

fuzz: $(VENV)/installed-fuzz
	for target in frames whole protocol leases link; do \
		$(BIN)/python -m tests.ipc.fuzz $$target --seconds $(FUZZ_SECONDS) || exit 1; \
	done

clean:
	rm -rf $(VENV) build *.egg-info
