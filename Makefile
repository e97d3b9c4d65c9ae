# PYTHON=/path/to/python3 chooses the interpreter; otherwise the newest from 3.11 to 3.13 is taken, be it on PATH or
# installed by pyenv or uv.

PYTEST = .venv/bin/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal

.PHONY: help install train test test-all lint clean

help:
	@echo 'make train    install into .venv, train configs/quickstart.py in runs/quickstart (again: resume)'
	@echo 'make test     install into .venv, run the quick tests'
	@echo 'make test-all install into .venv, run all tests: slow ones too, and proofs whose subject did not change'
	@echo 'make lint     install into .venv, check the style (ruff check, ruff format)'
	@echo 'make clean    remove .venv and caches; runs/ stays'

install:
	@scripts/install.sh

train: install
	.venv/bin/python train.py --config=configs/quickstart.py --workdir=runs/quickstart

test: install
	$(PYTEST)

test-all: install
	$(PYTEST) -m '' --all-proofs

lint: install
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
