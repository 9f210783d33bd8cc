# Everything that a developer does here. `make help` lists it.
#
# Nothing has to stand ready but Python >= 3.11, make, and root or a password-less sudo for packages that are missing.
# PYTHON=/path/to/python3 chooses the Python of a new .venv.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all

VENV := .venv
BIN := $(VENV)/bin
# Not `python -m` without -P: the project's folder would come first on the path and shadow the build under test.
PYTEST := $(BIN)/python -P -m pytest
BUILD_INPUTS := setup.py $(wildcard src/*.pyx src/*.pxd src/*/*.pxd)
N ?= 1000000
MICRO_RUNS := .cache/benchmarks/micro

.PHONY: all demo test test-long test-faults test-mutations lint strict sanitized races fuzz clean distclean help
.PHONY: bench bench-quick bench-backends bench-full bench-scale bench-cni bench-micro bench-micro-compare
.PHONY: prepare-build prepare-lab prepare-test prepare-bench prepare-cni

all: prepare-build build/.built  ## build flannel-udp into .venv (editable)

demo: prepare-lab all  ## the lab: containers on three nodes talk, explained step by step
	$(BIN)/flannel-udp lab demo

# The heavy builds go side by side; the line that counts the tests comes last.
test: prepare-test all  ## lint, strict build, the data plane under sanitizers, every test
	$(MAKE) --no-print-directory -j2 --output-sync=target lint strict build/sanitized/.built
	$(MAKE) --no-print-directory sanitized
	$(PYTEST)

test-long: prepare-test all  ## every combination of what transfers depend on (hours)
	FLANNEL_UDP_LONG=1 $(PYTEST) tests/netns/test_transfers.py

test-mutations: prepare-test all  ## WORDS=...: take guards of the fast path out, each in a copy: its test must fail
	$(BIN)/python -m tests.mutation $(WORDS)

lint: all  ## ruff, mypy --strict, cython-lint
	$(BIN)/ruff check --quiet
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint src  # looks for pycodestyle in PATH

strict: build/strict/.built  ## a build that any warning of Cython or gcc ends

# Leaks are not looked for: the interpreter gives back next to nothing when it ends, and would drown ours.
sanitized: build/sanitized/.built  ## the data-plane tests under the address and undefined-behaviour sanitizers
	$(SANITIZED) $(PYTEST) -q tests/dataplane

# setarch: the sanitizer knows fewer places for memory than newer kernels choose from. Its report is the test's failure.
races: all build/races/.built  ## loops and table under the thread sanitizer
	PYTHONPATH=$(CURDIR)/build/races FLANNEL_UDP_SANITIZED=$(CURDIR)/build/races LD_PRELOAD=$$(gcc -print-file-name=libtsan.so) \
	TSAN_OPTIONS="suppressions=$(CURDIR)/tests/dataplane/races.txt history_size=7 exitcode=66" \
	setarch -R $(PYTEST) -q --capture=sys --timeout=0 tests/dataplane/test_rcu.py tests/dataplane/test_worker.py \
	tests/dataplane/test_send.py tests/dataplane/test_receive.py -k "not leak and not takes_no_memory"

fuzz: all build/sanitized/.built  ## N=... mutated datagrams, super-packets and batches each, under the sanitizers
	FLANNEL_UDP_FUZZ=$(N) $(SANITIZED) $(PYTEST) --timeout=0 -q tests/dataplane/test_fuzz.py

# TIMES and SEED: FAULTS="30 1". The first run builds etcd, and needs go.
test-faults: prepare-test all  ## a hundred faults of etcd under traffic, and a table of what was measured (root, 15 minutes)
	$(BIN)/python -m tests.faults $(FAULTS)

# Each run is kept, to be compared with later ones; MICRO: options of pytest-benchmark.
bench-micro: all  ## single rooms, timed by pytest-benchmark
	$(PYTEST) benchmarks/micro --benchmark-storage=$(MICRO_RUNS) --benchmark-autosave $(MICRO)

bench-micro-compare:  ## the last two runs of bench-micro side by side
	$(BIN)/pytest-benchmark --storage $(MICRO_RUNS) compare --group-by=fullname --columns=min,median --sort=name \
		$$(ls -t $(MICRO_RUNS)/*/*.json | head -n 2)

# RIVALS: further options, see `python -m benchmarks.rivals --help`. The first run builds rivals, and needs go.
bench-quick: prepare-bench all  ## the table of targets against kernel VXLAN and flannel, within 5 minutes (root)
	$(BIN)/python -m benchmarks.rivals quick --save .cache/benchmarks/quick $(RIVALS)

bench: prepare-bench all  ## the headline rows, five rounds of 5 s (root, half an hour)
	$(BIN)/python -m benchmarks.rivals standard --save .cache/benchmarks/standard $(RIVALS)

bench-full: prepare-bench all  ## every load, link mode and setting (root, hours)
	$(BIN)/python -m benchmarks.rivals full --save .cache/benchmarks/full $(RIVALS)

bench-backends: prepare-bench all  ## the vxlan backend against udp, kernel VXLAN and flannel's, ten rounds (root, 40 minutes)
	$(BIN)/python -m benchmarks.rivals backends --save .cache/benchmarks/backends $(RIVALS)

# SCALE: options, see `python -m benchmarks.scale --help`. The first run builds etcd, and needs go.
bench-scale: all  ## one daemon among 10,000 nodes in etcd, 200 nodes that start at once, within 3 minutes (root)
	$(BIN)/python -m benchmarks.scale --save .cache/benchmarks/scale $(SCALE)

# CNI: options, see `python -m benchmarks.cni --help`. The first run builds flannel's plugin, and needs go.
bench-cni: prepare-cni all  ## what the CNI plugin takes beside the plugin that it calls, within a minute (root)
	$(BIN)/python -m benchmarks.cni --save .cache/benchmarks/cni $(CNI)

clean:  ## remove what was built, and caches
	rm -rf build dist *.egg-info flannel_udp/*.so .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove .venv too
	rm -rf $(VENV)

help:  ## list the targets
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / { printf "  make %-20s %s\n", $$1, $$2 }' Makefile

# -- what this machine must have --------------------------------------------------------------------------------------

FOUND_PYTHON = $$(.ci/python $(PYTHON))

prepare-build:
	@python=$(FOUND_PYTHON) && .ci/prepare "$$python" build

prepare-lab:
	@python=$(FOUND_PYTHON) && .ci/prepare "$$python" build lab

prepare-test:
	@python=$(FOUND_PYTHON) && .ci/prepare "$$python" build lab test bench cni

prepare-bench:
	@python=$(FOUND_PYTHON) && .ci/prepare "$$python" build lab bench

prepare-cni:
	@python=$(FOUND_PYTHON) && .ci/prepare "$$python" build lab cni

# -- builds -----------------------------------------------------------------------------------------------------------

PIP := $(BIN)/python -m pip --disable-pip-version-check
# What pyproject.toml says a build needs, so that the versions stand in one place.
REQUIRES := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")

$(VENV)/.made: | prepare-build
	python=$(FOUND_PYTHON) && "$$python" -m venv $(VENV)
	touch $@

build/.installed: pyproject.toml $(VENV)/.made | prepare-build
	@echo "flannel-udp: installing into $(VENV) ..."
	$(BIN)/python -c '$(REQUIRES)' | $(PIP) install --quiet -r /dev/stdin
	$(PIP) install --quiet --no-build-isolation --editable '.[test]'
	mkdir -p build && touch $@

build/.built: build/.installed $(BUILD_INPUTS)
	@echo "flannel-udp: compiling ..."
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

build/strict/.built: build/.installed $(BUILD_INPUTS)
	FLANNEL_UDP_STRICT=1 $(BIN)/python setup.py --quiet build_ext --build-temp build/strict --build-lib build/strict
	touch $@

# The Python files are copied along, since a package is found in one folder only.
build/sanitized/.built: build/.installed $(BUILD_INPUTS) $(wildcard flannel_udp/*.py flannel_udp/*/*.py)
	FLANNEL_UDP_SANITIZE=address,undefined $(BIN)/python setup.py --quiet build --build-base build/sanitized-tmp --build-lib build/sanitized
	touch $@

build/races/.built: build/.installed $(BUILD_INPUTS) $(wildcard flannel_udp/*.py flannel_udp/*/*.py)
	FLANNEL_UDP_SANITIZE=thread $(BIN)/python setup.py --quiet build --build-base build/races-tmp --build-lib build/races
	touch $@

# tests/dataplane/conftest.py fails unless the modules really come from this folder, with the sanitizers in them.
SANITIZED = PYTHONPATH=$(CURDIR)/build/sanitized FLANNEL_UDP_SANITIZED=$(CURDIR)/build/sanitized \
	LD_PRELOAD=$$(gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
