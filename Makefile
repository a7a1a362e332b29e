PYTHON ?= python3
BIN := .venv/bin

.PHONY: help reproduce test data results study bench report report-check export notebooks check-notebooks clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 26

reproduce: .venv/installed ## train the final net on the best device there is; fails if the target was missed
	$(BIN)/python train.py --step 3

test: report-check ## run the test suite, the linter and the report's check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

data: .venv/installed ## fetch MNIST if it is not there yet, and check it
	$(BIN)/python -c "import utils; utils.load_mnist()"

results: .venv/installed ## train the random seeds behind the published results; finished ones are kept
	for step in 1 2; do $(BIN)/python train.py --step $$step --seeds 5 --device cpu --out results || [ $$? = 1 ]; done
	$(BIN)/python train.py --step 3 --seeds 20 --device cpu --out results || [ $$? = 1 ]
	$(BIN)/python -m experiments.errors
	$(BIN)/python -m experiments.examples

study: .venv/installed ## train the search, single changes, prior solutions and smaller nets; finished runs are kept
	$(BIN)/python -m experiments.study

bench: .venv/installed ## time the usual pipeline against this one, on the best device there is (about 20 minutes)
	$(BIN)/python -m experiments.bench

report: .venv/tools ## put what results/ says into the README and the notebooks
	$(BIN)/python -m experiments.report

report-check: .venv/tools ## fail if a number in the README or a notebook differs from results/
	$(BIN)/python -m experiments.report --check

export: .venv/tools ## write the final net as ONNX, and check it against PyTorch on the test images
	$(BIN)/python -m experiments.export

notebooks: .venv/installed ## execute the three notebooks again, in place
	$(BIN)/python -m experiments.notebooks

check-notebooks: .venv/installed ## execute the three notebooks into a temporary folder
	$(BIN)/python -m experiments.notebooks --check

clean: ## remove the environment and the caches
	rm -rf .venv .pytest_cache .ruff_cache runs
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@

.venv/tools: .venv/installed tests/requirements.txt requirements-demo.txt
	$(BIN)/python -m pip install --quiet --requirement tests/requirements.txt
	touch $@
