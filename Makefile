PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet
TRAINING := torch torchvision torchsummary tqdm matplotlib scikit-image  # with what they need; no Jupyter

.PHONY: help reproduce test data study report report-check errors export page picture bench notebooks clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 26

reproduce: .venv/training ## train the final net on the best device there is; fails if the target was missed
	$(BIN)/python train.py --step 3

test: report-check ## run the report's check, the linter, the type checker and the test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2  # faster than one process with two threads

data: .venv/training ## fetch MNIST if it is not there yet, and check it
	$(BIN)/python -c "import utils; utils.load_mnist()"

study: .venv/training ## train what is missing of the runs that the report shows; finished ones are kept
	$(BIN)/python -m experiments.study choices parts steps prior candidates records

report: .venv/installed ## write results/README.md and the pictures from the records
	$(BIN)/python -m experiments.report

report-check: .venv/tools ## fail if what the report or demo.html shows differs from the records, or a record's definition from the code
	$(BIN)/python -m experiments.report --check
	$(BIN)/python -m experiments.page --check

errors: .venv/installed ## find the test images that the published nets get wrong
	$(BIN)/python -m experiments.errors

export: .venv/tools ## write the final net as ONNX, in float32 and in 8 bits, and measure both
	$(BIN)/python -m experiments.export

page: .venv/installed ## write demo.html, the final net on a page
	$(BIN)/python -m experiments.page

picture: .venv/tools ## write the README's picture of demo.html; it needs Chromium or Chrome
	$(BIN)/python -m experiments.browser

bench: .venv/tools ## time the usual pipeline against this one, on the best device there is, and evaluation on the CPU
	$(BIN)/python -m experiments.bench
	$(BIN)/python -m experiments.bench --whole
	$(BIN)/python -m experiments.inference

notebooks: .venv/installed ## execute the three notebooks again, in place, on one CPU thread as the published runs
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --to notebook --inplace --execute \
		--ExecutePreprocessor.record_timing=False Step*.ipynb
	$(BIN)/jupyter nbconvert --to notebook --inplace --coalesce-streams Step*.ipynb

clean: ## remove the environment and the caches; runs/ stays
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# The versions of the published runs; where this Python or this machine cannot have them, the newest there are.
.venv/training: constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) $(TRAINING) --constraint constraints.txt || $(PIP) $(TRAINING)
	touch $@

.venv/installed: .venv/training requirements.txt
	$(PIP) --requirement requirements.txt --constraint constraints.txt || $(PIP) --requirement requirements.txt
	touch $@

.venv/tools: .venv/installed tests/requirements.txt
	$(PIP) --requirement tests/requirements.txt
	touch $@
