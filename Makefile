# Every target sets itself up from nothing: Linux, Python 3.10 or newer with its venv module, and make.
# Another interpreter: make test PYTHON=python3.12. Another place for the environment: VENV=/path.

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python -m

OLDEST := systems lyapunov hankel norms reduction bank_reduction
DEMO := --task digits --order 4 --out demo

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-long test-oldest lint format docs dist clean

help:  ## say what the targets do
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/.demo  ## train a model that shrinks while it learns; the report is in demo/
	$(RUN) benchmarks.experiment $(DEMO)

test: lint  ## format, lint, spelling, types, tests
	$(RUN) pytest -q -n 2

test-long: lint  ## the same with whole families instead of a tenth of each
	HANKELRED_LONG=1 $(RUN) pytest -q -n 2

test-oldest:  ## tests of the core with the oldest versions that the metadata allow: PYTHON=python3.10
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e ".[control,plot,testing]" mpmath pytest
	$(VENV)-oldest/bin/python -m pytest -q -p no:cacheprovider $(OLDEST:%=tests/test_%.py)

lint: $(VENV)/.test  ## the first four of these
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) codespell_lib
	$(RUN) mypy

format: $(VENV)/.test  ## rewrite the files as `make lint` wants them, where a program can
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

docs: $(VENV)/.docs  ## build docs/_build/index.html; a warning is an error
	rm -rf docs/api/generated docs/examples
	$(RUN) sphinx -W --keep-going -q -b html docs docs/_build

dist: $(VENV)/.test  ## build the wheel and the sdist in dist/, the same bytes every time
	rm -rf dist
	$(RUN) hatchling build

clean:  ## delete what the other targets made, the environment included
	rm -rf $(VENV) $(VENV)-oldest demo build dist docs/_build docs/api/generated docs/examples .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# A stamp for the environment and one for each extra, written when its installation has succeeded.
$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "installing hankelred[$*] and the tested versions of what it needs: once, a few minutes"
	$(RUN) pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	touch $@
