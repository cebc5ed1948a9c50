# Every target installs what it needs into .venv first. Another interpreter: make setup PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DOCS := $(VENV)/.installed-docs
PIP_INSTALL := $(BIN)/python -m pip install -c constraints.txt
OLDER_TRITON := build/triton-3.6.0
LOWEST := .venv-lower-bounds$(TORCH:%=-%)
INSTALLED_LOWEST := $(LOWEST)/.installed
TESTS_OF_PACKAGES := tests/integrations tests/model tests/decoder tests/monitor \
	tests/evaluation/test_learned_scores.py tests/evaluation/test_text_ability.py \
	tests/kernels/test_transformers_attention.py tests/kernels/test_transformers_mask.py \
	tests/data/test_chat_template.py tests/data/test_conversation.py tests/data/test_films.py \
	tests/data/test_hugging_face.py tests/data/test_parquet.py tests/data/remote \
	tests/training/test_lora.py
# Files of tests side by side, each in a process with one thread: they are too small for more. Four,
# also on two processors, for many tests wait for a server or a training run that they have started.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=4 --dist=loadfile --no-loadscope-reorder

# Of the broken files that a hunt draws: longer hunts are a command of their own, docs/reliability.md.
FUZZ_ROUNDS ?= 0.4

.DEFAULT_GOAL := help
.PHONY: help setup quickstart smollm smollm-train test lower-bounds aot aot-all bench lint docs toy-assets clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' Makefile | awk -F ': ' '{printf "make %-12s %s\n", $$1, $$2}'

setup: $(INSTALLED) ## create .venv and install the pinned dependencies

quickstart: $(INSTALLED) ## train a small MetaMorph that answers and draws, and write its report
	$(BIN)/metamorph quickstart

smollm: $(INSTALLED) ## let SmolLM2, which was taught to read and draw toy scenes, answer and draw
	$(BIN)/metamorph quickstart --language smollm2

smollm-train: $(INSTALLED) ## teach it again, within two hours on two cores; goes on where it stopped
	$(BIN)/metamorph quickstart --language smollm2 --train

test: $(INSTALLED) ## run all tests, then those of the Triton kernels in Triton's interpreter
	FUZZ_ROUNDS=$(FUZZ_ROUNDS) $(PYTEST) --durations=15
	TRITON_INTERPRET=1 $(PYTEST) --dist=worksteal tests/kernels/*/test_triton_*.py

# What touches the packages whose bounds matter most, without what takes long.
lower-bounds: $(INSTALLED_LOWEST) ## run the tests of other packages with the oldest that pyproject.toml allows
	$(LOWEST)/bin/python -m tests.lower_bounds
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest --numprocesses=2 --dist=loadfile -m 'not slow' $(TESTS_OF_PACKAGES)

aot: $(INSTALLED) ## compile every Triton kernel without a GPU; check and show its machine code
	$(BIN)/python -m metamorph_kernels.aot

# Each Triton brings a compiler of its own. OLDER_AOT: options of the second run.
aot-all: aot $(OLDER_TRITON) ## the same, then again with Triton 3.6.0
	PYTHONPATH=$(OLDER_TRITON) $(BIN)/python -m metamorph_kernels.aot $(OLDER_AOT)

$(OLDER_TRITON): | $(INSTALLED)
	rm -rf $@.part
	$(BIN)/python -m pip install --no-deps --target $@.part $(subst -,==,$(notdir $@))
	mv $@.part $@

bench: $(INSTALLED) ## verify and time every entry that this machine can run
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-columns=median,iqr,min,rounds

lint: $(INSTALLED) ## check the code with ruff and pyrefly
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

docs: $(INSTALLED_DOCS) ## build the site of the documentation into build/docs; a warning is an error
	$(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning -c docs/site -d build/doctrees . build/docs
	@echo build/docs/index.html

toy-assets: $(INSTALLED) ## rebuild the pretrained toy encoder, decoder base and one-pass decoder that are shipped
	$(BIN)/python -m metamorph.quickstart.make_assets

clean: ## remove build output and caches; .venv, .venv-lower-bounds and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .benchmarks
	find . -path './$(VENV)*' -prune -o -name __pycache__ -type d -exec rm -rf {} +

# torch comes first and without build isolation, because building csrc/ needs this very torch.
PROJECTS := pyproject.toml setup.py kernels/pyproject.toml kernels/setup.py
$(INSTALLED): $(PROJECTS) constraints.txt $(wildcard CMakeLists.txt csrc/* csrc/cpu/*)
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) was not found; MetaMorph needs Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "MetaMorph needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1);" \
			"name another with make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) setuptools torch
	$(PIP_INSTALL) --no-build-isolation -e ./kernels -e '.[test]'
	@touch $@

# uv takes the lowest version of each direct dependency, and keeps the torch that it finds: the one
# of constraints.txt, or TORCH, whose wheels for CPUs are on an index of PyTorch's alone.
$(INSTALLED_LOWEST): $(PROJECTS) constraints.txt
	rm -rf $(LOWEST)
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install -c constraints.txt uv
	$(LOWEST)/bin/python -m pip install --no-deps $(if $(TORCH),torch==$(TORCH),-c constraints.txt torch)
	METAMORPH_CPU=0 METAMORPH_CUDA=0 $(LOWEST)/bin/uv pip install --python $(LOWEST)/bin/python \
		--resolution lowest-direct -e ./kernels -e '.[test]'
	@touch $@

$(INSTALLED_DOCS): $(INSTALLED)
	$(PIP_INSTALL) --no-build-isolation -e '.[docs]'
	@touch $@
