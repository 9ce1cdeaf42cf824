# make demo: explain real photos.  make test: everything that has to hold.  VENV=... reuses an environment.
PYTHON ?= python3
VENV ?= .venv
# auto, cpu, never or require; see setup.py.
export GRADCAM_FAST_BUILD ?= auto
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
DEMO := $(VENV)/.demo-$(GRADCAM_FAST_BUILD)
DEV := $(VENV)/.dev-$(GRADCAM_FAST_BUILD)
CXX_SOURCES := $(wildcard csrc/*.cpp csrc/*.h csrc/*.inl csrc/*.cu benchmarks/*.cpp tests/*.cpp)
BUILD_INPUTS := pyproject.toml setup.py constraints.txt $(wildcard csrc/*.*)

.PHONY: demo test bench lint format clean one-binary

# Without the record of a build nothing is installed, whatever the stamps say.
ifeq ($(wildcard gradcam_fast/_lib/build.json),)
.PHONY: $(DEMO) $(DEV)
endif

demo: $(DEMO)
	$(BIN)/gradcam-fast demo

test: lint
	$(BIN)/python -m pytest

# Ratios within one run, contenders by turns; nothing fails on a clock.
bench: $(DEV)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(BIN)/python -m pytest benchmarks -q --benchmark-disable-gc

lint: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_SOURCES)

# The wheel built here, its library unchanged, under another interpreter and its torch.
one-binary: $(DEV)
	OTHER_PYTHON=$(OTHER_PYTHON) $(BIN)/python -m pytest tests/test_build.py -k another_torch -rsP

clean:
	rm -rf build dist *.egg-info gradcam_fast/_lib $(VENV)/.demo-* $(VENV)/.dev-*

# torch comes first: the kernels are built against it.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.version_info >= (3, 10) or sys.exit("gradcam_fast needs Python 3.10 or newer")'
	$(PIP) install -q -c constraints.txt setuptools torch torchvision
	touch $@

# One install at a time lies in the tree, so making one kind forgets the others.
$(DEMO): $(VENV)/.torch $(BUILD_INPUTS)
	rm -f $(VENV)/.demo-* $(VENV)/.dev-*
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[demo]'
	-$(PIP) install -q -c constraints.txt --no-deps foolbox
	touch $@

$(DEV): $(VENV)/.torch $(BUILD_INPUTS)
	rm -f $(VENV)/.demo-* $(VENV)/.dev-*
	if $(PIP) show -q cuda-toolkit && ! command -v nvcc; then $(PIP) install -q 'cuda-toolkit[cccl,nvcc]'; fi
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	-$(PIP) install -q -c constraints.txt --no-deps foolbox
	touch $@
