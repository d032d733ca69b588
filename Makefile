PYTHON ?= .venv/bin/python

.PHONY: check format test
check: ## everything that needs no Ray: lint, format, types, fast tests
	$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy
	$(PYTHON) -m pytest -q -m "not e2e"

format:
	$(PYTHON) -m ruff check --fix . ; $(PYTHON) -m ruff format .

test: ## with the end-to-end tests
	bash scripts/test.sh
