# Everything runs in .venv, made on first use. Options for a command: make demo ARGS="--quick"
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /make \1	/p' Makefile

demo: $(READY)  ## a real BERT, errors, speed, and a picture of it, on this machine
	$(BIN)/python -m attnkern demo $(ARGS)

test: $(READY)  ## all tests, on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# The definition, the blocked backend, and modules built on them.
QUICK := reference budget priors errors philox layers position sampling decoding wordpiece
test-quick: $(READY)  ## tests of the core, under two minutes on two cores; says what it leaves out
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal $(QUICK:%=tests/test_%.py) \
		-k "not triton and not 1000" $(ARGS)
	@echo "test-quick leaves out: Triton in its interpreter, CUDA kernels in the emulator and as machine code, learned"; \
	echo "centres, Attention-over-Attention, torch.compile, models, examples, commands, benchmark, tuning, packaging (make test has all)"

bench: $(READY)  ## attnkern beside its peers on this machine, under three minutes; every result checked first
	$(BIN)/python -m attnkern bench --seconds 160 $(ARGS)

CLANG_FORMAT = $(BIN)/python -c 'import clang_format; clang_format.clang_format()'
CPP = $$(find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')
lint: $(READY)  ## rules and format: ruff for Python, clang-format for C++
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	@$(CLANG_FORMAT) --dry-run --Werror $(CPP)

format: $(READY)  ## write the format that lint wants
	$(BIN)/python -m ruff format .
	@$(CLANG_FORMAT) -i $(CPP)

# On a machine with a GPU, whose PYTHON has all that is needed: installs nothing. make gpu-check STAGE=3 runs one stage.
OUT ?= out
gpu-check: export PYTHONPATH = .
gpu-check:  ## tests and benchmarks on this machine's GPU, in stages (STAGE=3, STAGE=1-4,8); logs and rows go to OUT
	$(PYTHON) -m attnkern.bench.gpu_check --out $(OUT) $(if $(STAGE),--stage $(STAGE)) $(ARGS)

gpu-build:  ## compile the CUDA C++ kernels into the package; needs nvcc, ninja and pybind11, but no GPU
	$(PYTHON) csrc/build.py cuda

cpu-build:  ## compile the kernels for CPUs into the package; needs a C++ compiler, ninja and pybind11
	$(BIN)/python csrc/build.py cpu

clean:  ## remove .venv and whatever else was made
	rm -rf .venv build csrc/build attnkern/*.so dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks attnkern_demo.png attnkern_bench.jsonl attnkern_report.html

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

.PHONY: help demo bench test test-quick lint format gpu-check gpu-build cpu-build clean
