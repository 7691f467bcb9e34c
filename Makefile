# make setup       .venv with everything
# make demo        the main job end to end, under six minutes on two cores
# make test        the quick tests
# make check       formatting, lint, types, import contracts, tests: green before anything lands
# make test-slow   the tests that take minutes
# make test-long   those that are run before a release
# make test-gpu    those that need a GPU
# make test-services   the tests beside a real HTCondor, Slurm and S3 server, which it installs (as root)
# make bench       the measurements behind the README's figures; alone on the machine
# make wheelhouse  wheels for a machine without a network

PYTHON ?= python3
BIN := .venv/bin
EXTRAS := pipeline,model,s3
LOOSELY := $(addprefix --allow-,untyped-defs untyped-calls incomplete-defs any-generics) # scripts

.PHONY: setup demo test test-slow test-long test-gpu test-services check lint bench wheelhouse clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed, set PYTHON=...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[$(EXTRAS),dev]'
	touch $@

demo: setup
	$(BIN)/python demo.py

test: setup
	$(BIN)/pytest -q

test-slow: setup
	$(BIN)/pytest -q -m 'slow and not long'

test-long: setup
	$(BIN)/pytest -q -m long

test-gpu: setup
	$(BIN)/pytest -q -m gpu

test-services: setup
	$(BIN)/pytest -q -m 'services and not long'

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy $(LOOSELY) demo.py docs/picture.py tests/bench/*.py
	$(BIN)/lint-imports

check: lint test

bench: setup
	OPENBLAS_NUM_THREADS=1 $(BIN)/python tests/bench/simulate_cost.py
	$(BIN)/python tests/bench/workers.py
	$(BIN)/python tests/bench/plan_accuracy.py
	$(BIN)/python tests/bench/reading.py . 1.6 5
	$(BIN)/python tests/bench/write_verify.py
	$(BIN)/python tests/bench/many_manifests.py . 1e6 1e7
	$(BIN)/python tests/bench/training.py
	$(BIN)/python tests/bench/sampling.py

# For this Python and platform:  make wheelhouse
# For another Python on Linux:   make wheelhouse FOR=3.12   (torch is left to that machine)
# There:  pip install --no-index --find-links wheelhouse 'strainflow[pipeline,model]'
FOR ?=
PLATFORMS := $(foreach n,2_28 2_27 2_24 2_17 2_12 2_5,--platform manylinux_$(n)_x86_64) --platform manylinux2014_x86_64 --platform manylinux1_x86_64

wheelhouse: setup
ifeq ($(FOR),)
	$(BIN)/python -m pip wheel --constraint constraints.txt --wheel-dir wheelhouse '.[$(EXTRAS)]'
else
	$(BIN)/python -m pip wheel --no-deps --wheel-dir wheelhouse . "$$(grep '^nflows==' constraints.txt)"
	grep -v -E '^(#|torch==|torchvision==|nflows==)' constraints.txt > wheelhouse/requirements.txt
	$(BIN)/python -m pip download --no-deps --only-binary=:all: --python-version $(FOR) --implementation cp $(PLATFORMS) --dest wheelhouse --requirement wheelhouse/requirements.txt
endif

clean:
	rm -rf .venv demo wheelhouse
