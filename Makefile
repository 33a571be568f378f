# The two commands of this project are `make demo` and `make test`; both do all the set-up.
#
#   TORCH        the torch to install first, so that nothing else picks one
#   TORCH_INDEX  package index to take torch from, for a CPU-only or CUDA build of your choice
#   PYTHON       Python 3.11 or newer
#
# `make bench` times the work beside its peers, which get an environment of their own:
#
#   MODEL        folder of an instructed checkpoint to measure with, beside the tiny sizes
#   NANOCHAT     folder that holds nanochat's package, to pretrain beside it
#   BENCH        further options of tests/benchmarks/run_all.py, such as --threads 2
#
# `make test` runs the tests, and `make test-slow` those that take minutes:
#
#   WORKERS      processes that share the tests, each on one thread; some tests wait more than they
#                compute, so one more than there are cores
#   TESTS        files to run alone
#
# `make fuzz` tries the readers of users' files with input that a fuzzer makes up (Linux):
#
#   FUZZ_SECONDS seconds for each of four targets

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := .venv-peers
PEERS_READY := $(PEERS)/.ready
MODEL ?=
NANOCHAT ?=
BENCH ?=
WORKERS ?= 3
TESTS ?=
FUZZ_SECONDS ?= 600
# A file's tests stay on one worker, with what they share; files that take long come first.
# Where containers forbid bytecode, each worker would rewrite and compile every test anew.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-slow bench fuzz check format clean

demo: $(READY)
	$(BIN)/rlhf run recipes/quickstart.yaml

test: $(READY)
	$(PYTEST) $(TESTS)

test-slow: $(READY)
	$(PYTEST) -m slow $(TESTS)

bench: $(READY) $(PEERS_READY)
	$(BIN)/python tests/benchmarks/run_all.py --peer $(PEERS)/bin/python \
		$(if $(MODEL),--model $(MODEL)) $(if $(NANOCHAT),--peer-source $(NANOCHAT)) $(BENCH)

fuzz: $(READY)
	$(BIN)/python -m pip install --quiet atheris==3.0.0
	for target in recipe manifest formats rankings; do \
		$(BIN)/python tests/fuzz/fuzz.py $$target -max_total_time=$(FUZZ_SECONDS) || exit 1; done

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/rlhf validate recipes/quickstart.yaml

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(PEERS) .pytest_cache .mypy_cache .ruff_cache build *.egg-info

$(READY): pyproject.toml .ci/requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install --quiet -r .ci/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $(READY)

# TRL has PPO until 1.12; torch goes first here too.
$(PEERS_READY):
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(PEERS)/bin/python -m pip install --quiet trl==1.12.0 transformers accelerate datasets
	touch $(PEERS_READY)
