# Every target sets up what it needs: an environment in .venvs/ with the versions pinned in constraints/.
AIRFLOW ?= 3.3
PYTHON ?= python3
EXECUTOR ?= local

VENV := .venvs/airflow-$(AIRFLOW)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV := .venvs/uv/bin/uv
# What needs no Airflow: the documentation, the spelling, the checks of a release.
TOOLS := .venvs/tools
TOOLS_READY := $(TOOLS)/.ready
# The tests of tests/e2e that are about workers, triggerers and schedulers.
ON_CELERY := $(addprefix tests/e2e/test_,celery.py production.py rows.py ownership.py)
CHECKED := .github airflow_dai_provider dags_examples docs tests
# A test that hangs ends its process, which fails the test by its name and shows where each thread stood.
ENDING_HANGS := -o faulthandler_timeout=300 -o faulthandler_exit_on_timeout=true

define POSTGRESQL
@test -n "$$(ls /usr/lib/postgresql/*/bin/initdb 2>/dev/null; command -v initdb)" || { \
	echo "Installing PostgreSQL from Debian's packages"; apt-get -qq update && apt-get -qq install --yes \
	--no-install-recommends postgresql >/dev/null; }
endef

export PYTHONDONTWRITEBYTECODE :=
export UV_PYTHON_DOWNLOADS := never

.DEFAULT_GOAL := help
.PHONY: help demo test versions e2e soak peers bench long screenshots docs lint types spelling hooks build constraints pins clean

help: ## Say what there is
	@echo "Airflow $(AIRFLOW); choose another with AIRFLOW=2.11"
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/  make \1 \t\2/p' $(MAKEFILE_LIST)

demo: $(READY) ## Cancel ingests of a local DAI service through a real Airflow, and say what happened
	@$(BIN)/python -W ignore tests/e2e/demo.py

test: $(READY) ## Run the tests that need only Python (ARGS="-k name" to choose)
ifdef ARGS
	@$(BIN)/pytest $(ENDING_HANGS) $(ARGS)
else
	@$(BIN)/pytest $(ENDING_HANGS) --numprocesses auto --maxprocesses 4 --cov --cov-report term --cov-fail-under 95
	@$(BIN)/coverage report --include "*/operation.py,*/rest.py" --fail-under 100
endif

versions: ## Run the tests that need only Python on the versions in between: Airflow 3.0, 3.1 and 3.2
	@for airflow in 3.0 3.1 3.2; do \
		$(MAKE) --no-print-directory test AIRFLOW=$$airflow ARGS="--numprocesses auto --maxprocesses 4" || exit 1; done

e2e: $(READY) ## Run the tests on a running Airflow (installs Debian's PostgreSQL if there is none; EXECUTOR=celery: Redis too)
	$(POSTGRESQL)
ifeq ($(EXECUTOR),celery)
	@test -n "$$(command -v redis-server)" || { echo "Installing Redis from Debian's packages"; \
		apt-get -qq update && apt-get -qq install --yes --no-install-recommends redis-server >/dev/null; }
	@$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints/airflow-$(AIRFLOW).txt \
		--constraint constraints/airflow-$(AIRFLOW)-celery.txt --group celery
	@E2E_EXECUTOR=celery $(BIN)/pytest $(if $(filter tests/%,$(ARGS)),,$(ON_CELERY)) $(ARGS)
else
	@$(BIN)/pytest $(if $(filter tests/%,$(ARGS)),,tests/e2e) $(ARGS)
endif

soak: $(READY) ## Cancel and wait many times under random faults (ARGS="--rounds 100 --polls 100 --waits 0" for less)
	$(if $(findstring --waits 0,$(ARGS)),,$(POSTGRESQL))
	@$(BIN)/python -W ignore tests/soak $(ARGS)

peers: $(READY) ## Run the hooks through a stock nginx (installs Debian's package if there is none; needs root then)
	@test -n "$$(PATH=$$PATH:/usr/sbin command -v nginx)" || { echo "Installing nginx from Debian's packages"; \
		apt-get -qq update && apt-get -qq install --yes --no-install-recommends nginx-light >/dev/null; }
	@$(BIN)/pytest tests/peers $(ARGS)

bench: $(READY) ## Measure polls, waits, and a campaign on a real Airflow (ARGS="--only campaign --small" for less)
	@$(BIN)/python tests/benchmarks $(ARGS)

long: $(READY) ## Run e2e and soak on 3.3 and 2.11, peers, bench, and the tests on the lowest versions; the results go to .airflow/long.md
	@$(BIN)/python tests/long.py

screenshots: $(READY) ## Take the README's pictures in a real browser (installs Debian's chromium if there is none; needs root then)
	@test -n "$$(command -v chromium)" -a -n "$$(command -v pngquant)" || { \
		echo "Installing chromium, pngquant and fonts from Debian's packages"; apt-get -qq update && apt-get -qq \
		install --yes --no-install-recommends chromium pngquant fonts-liberation fonts-dejavu-core >/dev/null; }
	@$(UV) pip install --quiet --python $(BIN)/python --constraint constraints/airflow-$(AIRFLOW).txt --group screenshots
	@$(BIN)/python -W ignore tests/screenshots $(ARGS)

docs: $(TOOLS_READY) ## Build the documentation into docs/_build; a warning, such as a dead link, is an error
	@$(TOOLS)/bin/sphinx-build --quiet --fail-on-warning --keep-going --builder html docs docs/_build
	@echo "docs/_build/index.html"

lint: $(READY) ## Check style, and which module imports which
	@$(BIN)/ruff check $(CHECKED)
	@$(BIN)/ruff format --check $(CHECKED)
	@$(BIN)/lint-imports

types: $(READY) ## Check types, also those that a user's own project sees
	@$(BIN)/mypy
	@$(BIN)/mypy tests/e2e/typed_project.py

spelling: $(TOOLS_READY) ## Check the spelling
	@$(TOOLS)/bin/codespell

hooks: $(READY) $(TOOLS_READY) ## Let git check style, spelling and imports at each commit
	@$(TOOLS)/bin/pre-commit install

build: $(READY) $(TOOLS_READY) ## Build the wheel and the sdist into dist/, and check their metadata
	@rm -rf dist
	@$(UV) build --python $(BIN)/python -q
	@$(TOOLS)/bin/twine check --strict dist/*.whl dist/*.tar.gz

constraints: $(UV) ## Pin the newest versions in constraints/airflow-$(AIRFLOW).txt
	@$(UV) pip compile --quiet --upgrade pyproject.toml --group dev --constraint constraints/airflow-$(AIRFLOW).in \
		--universal --python-version 3.11 --no-header --no-emit-index-url -o constraints/airflow-$(AIRFLOW).txt
	@# Beside them, what only the CeleryExecutor needs.
	@test $(AIRFLOW) != 3.3 || $(UV) pip compile --quiet --upgrade --group celery --constraint constraints/airflow-3.3.txt \
		--universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url \
		| grep -vxFf constraints/airflow-3.3.txt >constraints/airflow-3.3-celery.txt

pins: $(UV) ## Pin the newest versions of the tools in constraints/tools.txt
	@$(UV) pip compile --quiet --upgrade --group tools --universal --python-version 3.11 --no-header --no-emit-index-url \
		-o constraints/tools.txt

clean: ## Remove everything that was set up
	rm -rf .venvs .airflow .hypothesis dist docs/_build .coverage .mypy_cache .ruff_cache .pytest_cache

$(READY): constraints/airflow-$(AIRFLOW).txt pyproject.toml $(UV)
	@echo "Setting up Airflow $(AIRFLOW) in $(VENV): some 280 packages, a minute or two the first time"
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	@# Without the list of packages; whether all are there is seen by the second call.
	@$(UV) pip install --compile-bytecode --python $(BIN)/python -r $< 2>&1 | grep --line-buffered -v '^ [-+~] '
	@$(UV) pip install --quiet --python $(BIN)/python -r $<
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

$(TOOLS_READY): constraints/tools.txt $(UV)
	@echo "Setting up the tools in $(TOOLS)"
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) $(TOOLS)
	@$(UV) pip install --quiet --python $(TOOLS)/bin/python -r $<
	@touch $@

$(UV):
	@echo "Setting up uv"
	@$(PYTHON) -m venv .venvs/uv
	@.venvs/uv/bin/python -m pip install --quiet --disable-pip-version-check uv
