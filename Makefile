# Two commands do everything: `make report` and `make test`. Both set up their own .venv first, pinned.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
# of the report: phantoms are learned faster than patients, who get the recipe's own
STEPS ?= 800
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup report test cells pages check lab clean help

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(READY): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lungseg needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt pip setuptools wheel
	@echo "Installing lungseg and what it needs into $(VENV): this takes some minutes, once."
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

setup: $(READY)  ## the environment only: .venv with pinned versions
	@echo "The environment is ready: $(BIN)/lungseg --help"

report: $(READY)  ## the whole way once, on the embedded cohort: DICOM to report, site in _docs/
	$(BIN)/lungseg report --work _runs/report --set fit.steps=$(STEPS)

test: $(READY) cells  ## every test: the notebooks' cells, then tests/
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

cells: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --pause 0.2

check: $(READY)  ## notebooks clean and formatted, package and README as the notebooks say
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest tests/test_upkeep.py

pages: $(READY)  ## run the report afresh and keep its pages' outputs in nbs/report/
	$(BIN)/lungseg report --work _runs/report --set fit.steps=$(STEPS) --keep-pages

lab: $(READY)  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs

clean:  ## remove what was made, but neither .venv nor your own runs
	rm -rf _docs _proc _build _runs/report build dist *.egg-info
