PYTHON ?= python3
BIN := .venv/bin
SITE := _build/html
PARALLEL := -n auto --maxprocesses 4

.DEFAULT_GOAL := help
.PHONY: help setup book test lab serve bench experiments execute starters format clean

help: ## list these targets
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: .venv/installed ## create .venv and install the course into it

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "This needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "On Debian and Ubuntu, install python3-venv first."; exit 1; }
	$(BIN)/pip install --quiet -c constraints.txt -e ".[book,teach,test]"
	@touch $@

# A page that warned is not read again by itself, and the next try would pass: a failed build is forgotten.
book: setup ## build the book and print where it is
	$(BIN)/jupyter-book build . -W -n --keep-going || { rm -rf _build; exit 1; }
	@echo "The book is at $(CURDIR)/$(SITE)/index.html"

# From scratch, or pages that no longer exist would be tested too.
test: setup ## check everything: style, types, the library, every chapter, the book
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest $(PARALLEL) --dist loadfile --nbval --nbval-current-env book/chapters assignments
	rm -rf _build
	$(MAKE) book
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL) --dist worksteal --cov=advcourse src tests

lab: setup ## open the chapters in JupyterLab
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/book/chapters

serve: book ## serve the book at http://127.0.0.1:8000
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(SITE) 8000

bench: setup .venv/bench-installed ## compare time and strength with other libraries
	$(BIN)/python -m benchmarks $(BENCH)

# adv-lib asks for visdom, which current setuptools cannot build and no attack needs: it comes without its dependencies.
.venv/bench-installed: .venv/installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[bench]"
	$(BIN)/pip install --quiet -c constraints.txt --no-deps adv-lib
	@touch $@

# Hours on a laptop: what is recorded is not done again, what was interrupted goes on.
experiments: setup ## record the long experiments of chapters 8 to 11 again
	OMP_NUM_THREADS=1 $(BIN)/python tools/record_transfer.py
	OMP_NUM_THREADS=1 $(BIN)/python tools/record_training.py

execute: setup ## run every chapter and assignment again and write its notebook
	$(BIN)/python tools/execute.py

starters: setup ## make what students get out of assignments/, without solutions and hidden tests
	$(BIN)/python tools/make_starters.py

format: setup ## put the code into the style that 'make test' asks for
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what was built, and keep .venv
	rm -rf _build .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
