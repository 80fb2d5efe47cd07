# Everything sets itself up in .venv from constraints.txt on first use.
SHELL  := /bin/bash
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DATA   ?=
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lab docs check-docs samples notebooks book readme hooks clean

help:                  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

$(READY): settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; say where: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: this Python cannot make virtual environments (on Debian: apt-get install python3-venv)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about 6 GB, a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)         ## train, calibrate, evaluate on data_samples, DATA=voices or DATA=<manifest folder>
	$(BIN)/wedefense-nb demo $(if $(DATA),--data '$(DATA)') $(ARGS)

# Two processes share the cores; threads of their own would fight for them.
test: export OMP_NUM_THREADS ?= 1
test: $(READY)         ## notebooks, properties, golden values, hygiene
	rm -rf nbs/runs nbs/recipes/runs
	@$(BIN)/python tools/site/demo/build_demo.py --fetch || echo "the browser demo is not tested: see above"
	$(BIN)/nbdev-test --timing --skip-file-re '^[0-9]' --skip-folder-re '^(recipes|runs)$$'  # the rest runs in tests/: house/test_exercises.py, training/test_recipes.py
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=10

lab: $(READY)          ## the course in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/nbs/index.ipynb $(ARGS)

# With npm and node, formulas are set by KaTeX (npm package katex, fetched once into build/site); without, by the browser.
docs: $(READY)         ## the web site, in _docs/: by quarto where it is installed, else by Sphinx (ARGS='--by sphinx')
	$(BIN)/python tools/site/build.py $(ARGS)

check-docs: $(READY)   ## build the site with Sphinx, visit every page with Chromium (needs npm: katex, axe-core)
	$(BIN)/python tools/site/build.py --by sphinx
	$(BIN)/python tools/site/check.py $(ARGS)

samples: $(READY)      ## make the embedded corpus again (Debian packages: see tools/make_samples.py)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[samples]'
	$(BIN)/python tools/make_samples.py

notebooks: $(READY)    ## execute all notebooks in place, export, clean (NB=nbs/0_question/01_task.ipynb for one)
	rm -rf nbs/runs nbs/recipes/runs
	TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace --log-level=WARN $(or $(NB),nbs/index.ipynb nbs/*/*.ipynb)
	$(BIN)/nbdev-export && $(BIN)/nbdev-clean
	$(MAKE) book readme

book: $(READY)         ## tables of chapters and the site's sidebar, from tools/book.yaml
	$(BIN)/python tools/make_results.py
	$(BIN)/python tools/make_book.py

readme: $(READY)       ## README.md from nbs/index.ipynb
	$(BIN)/python tools/make_readme.py

hooks: $(READY)        ## git hooks: clean notebooks, merge them by cell
	PATH="$(abspath $(BIN)):$$PATH" nbdev-install-hooks

clean:                 ## remove what tests and docs leave behind (not .venv, not runs/)
	rm -rf _proc _docs build nbs/runs nbs/recipes/runs .ruff_cache .hypothesis *.egg-info
