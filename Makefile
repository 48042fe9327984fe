# Everything a newcomer runs. Each target works first, alone, on a fresh clone: it makes .venv when it is missing.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= results/demo

.PHONY: demo test test-oldest-ray test-system test-faults test-timed test-gpu docs lint clean

demo: $(STAMP)
	$(BIN)/cser-ray tune --out $(OUT)

test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
	@echo "Left out: tests marked 'system' (they need root or a system package; 'make test-system' runs them), 'faults'"
	@echo "(minutes of killed runs; 'make test-faults'), 'timed' (programs watched by the clock, for a quiet machine; 'make"
	@echo "test-timed') and 'gpu' (they need a CUDA GPU; 'make test-gpu')."

test-system: $(STAMP)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "system and not faults"

# The oldest Ray that pyproject.toml allows, over all else of .venv: a cluster's start and its token, and a real run.
OLDEST_RAY := $(shell sed -n 's/.*"ray\[.*\]>=\([0-9.]*\),.*/\1/p' pyproject.toml)
OLDEST := .venv-oldest-ray

test-oldest-ray: $(STAMP)
	$(BIN)/python -m venv $(OLDEST)
	$(BIN)/python -c 'import sys, sysconfig as s; print("import site; site.addsitedir(%r)" % s.get_path("purelib"))' \
	  > $$($(OLDEST)/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/all_else.pth
	$(OLDEST)/bin/python -m pip install --quiet --no-deps "ray==$(OLDEST_RAY)"
	$(OLDEST)/bin/python -c 'import ray; assert ray.__version__.startswith("$(OLDEST_RAY)."), ray.__version__'
	$(OLDEST)/bin/python -m pytest -p no:xdist tests/train/test_local_cluster.py \
	  tests/tuning/test_ray_study.py::test_a_worker_may_be_several_processes

test-faults: $(STAMP)
	$(BIN)/python -m pytest -m faults

test-timed: $(STAMP)
	$(BIN)/python -m pytest -m timed

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

docs: $(STAMP)
	$(BIN)/python docs/generate.py --reference build/docs
	@echo "The API reference: build/docs/index.html"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# An interpreter of another name may be all there is; any of the supported versions will do.
$(STAMP): pyproject.toml constraints.txt setup.py
	@python=$$(command -v $(PYTHON) || command -v python3) && $$python -c \
	  'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=/path/to/python"; exit 1; }; \
	$$python -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,dashboards]"
	@touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
