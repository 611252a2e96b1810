# make demo: three learners on one stream, a table and an HTML page.   make test: the whole test suite.   make docs: API pages in site/.
# make plasticity: six learners on slowly-changing regression, a figure and an HTML page (STEPS=1000000 for the full length).
# Each sets up a virtual environment of its own on first use.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo
RUN := $(BIN)/driftline run si_blurry --data digits --seed 1 --batch-size 10 --overwrite

.PHONY: demo plasticity test lint types docs clean

demo: $(VENV)/.demo
	$(RUN) --learner sgd --learner-set lr=0.2 --name "plain SGD" --out $(DEMO)/sgd
	$(RUN) --learner er --learner-set lr=0.2 --learner-set capacity=200 --learner-set ratio=3 --name "experience replay" --out $(DEMO)/er
	$(RUN) --learner slda --name "streaming LDA" --out $(DEMO)/slda
	$(BIN)/driftline report $(DEMO)/sgd $(DEMO)/er $(DEMO)/slda --html $(DEMO)/report.html

plasticity: $(VENV)/.demo
	$(BIN)/python benchmarks/slowly_changing_regression.py

# A worker for each core, of one thread: small networks gain nothing from more.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist worksteal

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

docs: $(VENV)/.test
	$(BIN)/pdoc -d numpy -o site driftline driftline.stream driftline.testing driftline.report

clean:
	rm -rf $(VENV) runs site

# The test environment has everything, so it serves the demo too.
$(VENV)/.demo: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -e $(VENV)/.test || $(BIN)/pip install --quiet -e ".[report]"
	touch $@

$(VENV)/.test: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e ".[all,dev]"
	touch $@
