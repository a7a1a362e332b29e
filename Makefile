PYTHON ?= python3
BIN := .venv/bin

.PHONY: help reproduce test data results study bench export notebooks check-notebooks clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 26

reproduce: .venv/installed ## train the final net on the best device there is; fails if the target was missed
	$(BIN)/python train.py --step 3

test: .venv/tools ## run the linter, the type checker and the test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2  # faster than one process with two threads

data: .venv/installed ## fetch MNIST if it is not there yet, and check it
	$(BIN)/python -c "import utils; utils.load_mnist()"

results: .venv/installed ## train the random seeds behind the published results; finished ones are kept
	for step in 1 2 3; do $(BIN)/python train.py --step $$step --seeds 20 --device cpu --out results || [ $$? = 1 ]; done
	$(BIN)/python -m experiments.errors

study: .venv/installed ## train what is missing of the study; finished runs are kept
	$(BIN)/python -m experiments.study

bench: .venv/installed ## time the usual pipeline against this one, on the best device there is (about 25 minutes)
	$(BIN)/python -m experiments.bench

export: .venv/tools ## write the final net as ONNX, in float32 and 8 bits, and measure both for all random seeds
	$(BIN)/python -m experiments.export --all-seeds

notebooks: .venv/installed ## execute the three notebooks again, in place
	$(BIN)/python -m experiments.notebooks

check-notebooks: .venv/installed ## execute the three notebooks into a temporary folder
	$(BIN)/python -m experiments.notebooks --check

clean: ## remove the environment and the caches
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache runs
	find . -name __pycache__ -prune -exec rm -rf {} +

# The versions of the published runs; where this Python or this machine cannot have them, the newest there are.
.venv/installed: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt --constraint constraints.txt \
		|| $(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@

.venv/tools: .venv/installed tests/requirements.txt requirements-demo.txt
	$(BIN)/python -m pip install --quiet --requirement tests/requirements.txt
	touch $@
