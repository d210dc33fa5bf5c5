PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST := .venv-oldest
DEEPSPEED := .deepspeed

.PHONY: docs help demo test test-multiprocess test-slow test-gpu test-oldest style quality clean

help:
	@echo "make demo         Post-LN against Pre-LN, with and without warmup: under two minutes"
	@echo "make test         the quick tests"
	@echo "make test-multiprocess  several processes, two machines, DeepSpeed: three minutes"
	@echo "make test-slow    the long ones, kill -9 among them"
	@echo "make test-gpu     those that need a CUDA device"
	@echo "make test-oldest  the quick tests on the lower bounds of transformers and accelerate"
	@echo "make style        format and mend with ruff"
	@echo "make quality      ruff, import-linter, mypy, codespell, word list"
	@echo "make docs         build the documentation into site/"

# torch by itself first: with it there, nothing else brings another build of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

.venv: $(STAMP)

demo: $(STAMP)
	$(BIN)/python scripts/compare_layer_norm.py

# One thread a process: two processes whose threads wait for each other's cores are ten times slower.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow and not gpu and not multiprocess"

# DeepSpeed beside the environment, not in it: Accelerate and transformers behave otherwise where it can be imported.
$(DEEPSPEED)/.installed: $(STAMP)
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $(DEEPSPEED) \
		-c constraints.txt deepspeed einops hjson msgpack ninja py-cpuinfo
	touch $@

test-multiprocess: $(STAMP) $(DEEPSPEED)/.installed
	OMP_NUM_THREADS=1 HF_WARMUP_DEEPSPEED=$(CURDIR)/$(DEEPSPEED) \
		$(BIN)/python -m pytest -n auto --dist loadfile -m "multiprocess and not slow and not gpu"

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "slow and not gpu"

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

$(OLDEST)/.installed: pyproject.toml constraints.txt constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet -c constraints.txt torch
	$(OLDEST)/bin/python -m pip install --quiet -c constraints-oldest.txt -e ".[test]"
	touch $@

# The old libraries themselves warn about the newer numpy: only our own tests count here.
test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n auto -m "not slow and not gpu and not multiprocess" -o filterwarnings=default

style: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python scripts/check_words.py

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(OLDEST) $(DEEPSPEED) runs build dist *.egg-info
