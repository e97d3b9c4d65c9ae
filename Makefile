# PYTHON=/path/to/python3 chooses the interpreter; otherwise the newest on PATH from 3.11 to 3.13 is taken.

.PHONY: help install train test lint clean

help:
	@echo 'make train    install into .venv, train configs/quickstart.py in runs/quickstart (again: resume)'
	@echo 'make test     install into .venv, run the quick tests'
	@echo 'make lint     install into .venv, check the style'
	@echo 'make clean    remove .venv and caches; runs/ stays'

install:
	@scripts/install.sh

train: install
	.venv/bin/python train.py --config=configs/quickstart.py --workdir=runs/quickstart

test: install
	.venv/bin/python -m pytest

lint: install
	.venv/bin/python -m ruff check .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
