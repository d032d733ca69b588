PYTHON ?= .venv/bin/python

.PHONY: check lint types form unit test faults format docs
check: lint ## before every commit; under a minute on two cores, without Ray
	@$(MAKE) --no-print-directory --jobs 2 --output-sync types form

lint:
	$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

form: ## layers, words, Markdown, limits, the wheel, and what we use of verl and vLLM
	$(PYTHON) -c "from importlinter.cli import lint_imports_command as run; run()" --no-logo --no-cache
	$(PYTHON) -m pytest -q --numprocesses 2 --dist loadfile tests/sanity tests/contract

unit: ## the unit tests; about four minutes on two cores
	$(PYTHON) -m pytest -q --numprocesses 2 --dist loadfile -m "not e2e and not slow" tests/unit tests/config

test: ## everything, with the end-to-end tests
	bash scripts/test.sh

faults: ## do everything in docs/reliability.md to real processes; about a quarter of an hour
	$(PYTHON) tests/faults

format:
	$(PYTHON) -m ruff check --fix . ; $(PYTHON) -m ruff format .

docs: ## write the pages that are made from data
	PYTHONPATH=tests $(PYTHON) -m contract.upstream_doc > docs/upstream.md.new
	mv docs/upstream.md.new docs/upstream.md
