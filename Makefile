# Everything runs in .venv, made on first use. Options for a command: make demo ARGS="--quick"
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*  ## /make \1	/p' Makefile

demo: $(READY)  ## a real BERT, errors, speed, and a picture of it, on this machine
	$(BIN)/python -m attnkern demo $(ARGS)

test: $(READY)  ## all tests, on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(READY)  ## ruff: rules and format
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

clean:  ## remove .venv and whatever else was made
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks attnkern_demo.png

# A torch that PYTHON has is used as it is, and then no network is needed; else torch comes from the index.
$(READY): pyproject.toml setup.py
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	{ echo "make: $(PYTHON) cannot make virtual environments: install it with ensurepip (Debian: python3-venv)"; exit 1; }
	$(PYTHON) -m venv .venv
	@if $(PYTHON) -c 'import torch' 2>/dev/null; then \
		echo "make: using the torch of $(PYTHON), and installing what it lacks"; \
		$(PYTHON) .ci/borrow.py .venv; \
		PIP_RETRIES=1 $(BIN)/pip install -e '.[dev]' >.venv/install.log 2>&1 || \
		echo "make: nothing installed (.venv/install.log says why): using only what $(PYTHON) has"; \
	else \
		set -e; \
		$(BIN)/pip install torch==2.13.0; \
		$(BIN)/pip install -e '.[dev]'; \
	fi
	@touch $@

.PHONY: help demo test lint clean
