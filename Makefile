# Everything starts here, on a machine with Python >= 3.11 and make; `make help` lists the targets.
# PORT, WEB_HOST and MARTECH_DATA move the platform; DATABASE_URL, LOG_URL, BROKER_URL and CACHE_URL replace its servers.

VENV = .venv
PYTHON = $(VENV)/bin/python
PYTEST = $(PYTHON) -m pytest
# A Python of your choice: make install BASE_PYTHON=python3.12
BASE_PYTHON =
UV = uv
LOCK = $(UV) pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url -q

.PHONY: help install up demo test test-laws test-sdks test-browser test-faults test-engines check bench lock clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do \
	  printf '  make %-14s %s\n' "$$name" "$$text"; done

install: $(VENV)/.installed ## Install into .venv what the platform needs, and nothing else

up: $(VENV)/.installed ## Start the platform and keep it up until Ctrl-C
	@exec $(PYTHON) manage.py up

demo: $(VENV)/.installed-demo ## Start it, play real purchases through it, compare (DEMO_EXIT=1: then stop)
	@exec $(PYTHON) manage.py demo

test: $(VENV)/.installed-dev ## Run the tests; they start servers of their own
	@exec $(PYTEST) -q

test-laws: $(VENV)/.installed-dev ## Run the properties alone, with 200 examples each (EXAMPLES=5000 for more)
	@EXAMPLES=$${EXAMPLES:-200} exec $(PYTEST) -q -m laws

test-sdks: $(VENV)/.installed-dev ## Run the Node SDKs against the platform (needs node and npm)
	@exec $(PYTEST) -q -m sdks

test-browser: $(VENV)/.installed-dev ## Look at the pages in Chromium (needs chromium)
	@exec $(PYTEST) -q -m browser

test-faults: $(VENV)/.installed-dev ## Bring faults about under load and compare
	@exec $(PYTEST) -q -m faults

test-engines: $(VENV)/.installed-dev ## Run the core on Spark and Flink (needs Java)
	@exec $(PYTEST) -q -m engines

check: $(VENV)/.installed-dev ## Check format, lint, types, imports and migrations
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	SECRET_KEY=for-checks-only $(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PYTHON) manage.py makemigrations --check --dry-run

bench: $(VENV)/.installed-dev ## Measure, with a reference beside each figure
	@exec $(PYTHON) -m tests.benchmarks

lock: ## Resolve the dependencies anew (needs uv)
	$(LOCK) -o requirements.txt
	$(LOCK) --extra demo -o requirements-demo.txt
	$(LOCK) --extra dev -o requirements-dev.txt

clean: ## Remove what was installed and built; the data in MARTECH_DATA stay
	rm -rf $(VENV) build dist staticfiles .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: requirements.txt $(PYTHON)
	@echo "Installing requirements.txt into $(VENV)"
	@$(PYTHON) -m pip install -q --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

$(VENV)/.installed-demo: requirements-demo.txt $(VENV)/.installed
	@echo "Installing requirements-demo.txt into $(VENV)"
	@$(PYTHON) -m pip install -q --disable-pip-version-check --require-hashes -r requirements-demo.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@echo "Installing requirements-dev.txt into $(VENV)"
	@$(PYTHON) -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

$(PYTHON):
	@for python in $(BASE_PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "Making $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv $(VENV) && exit 0; \
	    rm -rf $(VENV); \
	    echo "$$python cannot make a virtual environment: install its venv module (Debian: apt install python3-venv)." >&2; \
	    exit 1; \
	  fi; \
	done; \
	echo "No Python 3.11 or newer was found: install one, or name it with BASE_PYTHON=/path/to/python3." >&2; exit 1
