PYTHON ?= python3
BIN := .venv/bin

.PHONY: help reproduce test data study bench errors report report-check export notebooks check-notebooks clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 26

reproduce: .venv/installed ## train the final net on the best device there is; fails if the target was missed
	$(BIN)/python train.py --step 3

test: report-check ## run the linter, the type checker, the report's check and the test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2  # faster than one process with two threads

data: .venv/installed ## fetch MNIST if it is not there yet, and check it
	$(BIN)/python -c "import utils; utils.load_mnist()"

study: .venv/installed ## train what is missing of the published runs; finished ones are kept
	$(BIN)/python -m experiments.study choices steps/step3

bench: .venv/installed ## time the usual pipeline against this one, on the best device there is (about 25 minutes)
	$(BIN)/python -m experiments.bench

errors: .venv/installed ## find the test images that the published nets get wrong
	$(BIN)/python -m experiments.errors

report: .venv/tools ## write results/README.md and the pictures from the records
	$(BIN)/python -m experiments.report

report-check: .venv/tools ## fail if one of them differs from the records, or a record from the code
	$(BIN)/python -m experiments.report --check

export: .venv/tools ## write the final net as ONNX, in float32 and in 8 bits, and measure both
	$(BIN)/python -m experiments.export

notebooks: .venv/installed ## execute the three notebooks again, in place
	$(BIN)/python -m experiments.notebooks

check-notebooks: .venv/installed ## execute the three notebooks, with two epochs each, into a temporary folder
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
