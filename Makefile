# make demo: explain a few photos.  make test: run after every change.  make test-all: what CI runs.
# VENV=... uses an existing environment.  make demo TORCH=cpu: PyTorch without CUDA, which is a tenth as large; where
# pip's package index has none, TORCH_INDEX=... is the address of one that has.
PYTHON ?= python3
VENV ?= .venv
TORCH ?=
TORCH_INDEX ?=
# auto, cpu, never or require; see setup.py.
export GRADCAM_FAST_BUILD ?= auto
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
ifneq ($(filter-out cpu,$(TORCH)),)
$(error TORCH=$(TORCH) is unknown; give TORCH=cpu, or leave it out)
endif
INSTALLED_TORCH := $(VENV)/.torch$(addprefix -,$(TORCH))
DEMO := $(VENV)/.demo-$(GRADCAM_FAST_BUILD)$(addprefix -,$(TORCH))
DEV := $(VENV)/.dev-$(GRADCAM_FAST_BUILD)$(addprefix -,$(TORCH))
# pip shows its progress in make demo.
QUIET := -q
CXX_SOURCES := $(wildcard $(foreach kind,cpp h inl cu,csrc/*.$(kind) csrc/*/*.$(kind)) benchmarks/*.c benchmarks/*.cpp examples/*/*.cpp examples/*/*.h tests/*/*.cpp tests/*/*.h tools/*/*.cpp tools/*/*.h)
BUILD_INPUTS := pyproject.toml setup.py constraints.txt $(wildcard csrc/*.* csrc/*/*.* build_tools/*.py)

.PHONY: demo docs test test-slow test-all soak matrix bench bench-check gpu lint format clean one-binary sanitize aarch64

# Without build.json the package counts as not built, even if the stamp files exist.
ifeq ($(wildcard gradcam_fast/_lib/build.json),)
.PHONY: $(DEMO) $(DEV)
endif

demo: QUIET :=
demo: $(DEMO)
	$(BIN)/gradcam-fast demo
	@echo
	@echo "Try next:"
	@echo "  $(BIN)/gradcam-fast explain PHOTO.jpg"
	@echo "  $(BIN)/gradcam-fast explain PHOTO.jpg --model resnet50 --download"
	@echo "  $(BIN)/python examples/every_figure.py PHOTO.jpg"

# The documentation's site, in build/site; a warning is an error. Links to files that are no pages of it lead to
# REPOSITORY_URL.
export REPOSITORY_URL ?=
docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# One process per core, and one thread per process.
PER_CORE := -n logical --maxprocesses 4 --dist worksteal
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PER_CORE)

test: lint
	$(PYTEST) -m "not slow"

# The tests that make test leaves out: of wheels, of installs, and of tools/.
test-slow: $(DEV)
	$(PYTEST) -m slow

test-all: test
	$(MAKE) test-slow

# Less than an hour; BENCH=benchmarks/test_op.py runs one file only. Contenders take turns, and no time makes it fail.
BENCH ?= benchmarks
bench: $(DEV)
	mkdir -p benchmarks/results
	$(BIN)/python -m pytest $(BENCH) -q --benchmark-disable-gc --benchmark-columns=min,median,rounds \
	  --benchmark-json=benchmarks/results/cpu.json
	$(BIN)/python benchmarks/report.py

# Fails if the code became slower: by ratios within one run, with a margin for a busy machine, and by instructions that
# valgrind counts.
bench-check: $(DEV)
	$(BIN)/python -m pytest benchmarks/check_speed.py -q -p no:cacheprovider

# Measures on the GPU of this machine, in less than eight minutes; make bench adds the results to the report.
gpu: $(DEV)
	mkdir -p benchmarks/results
	$(BIN)/python benchmarks/gpu.py --out benchmarks/results/gpu.json

lint: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(DEV)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_SOURCES)

# Tests the wheel built here with another interpreter and its torch.
one-binary: $(DEV)
	OTHER_PYTHON=$(OTHER_PYTHON) $(BIN)/python -m pytest tests/build_tools/test_build.py -k another_torch -rsP

# The operator's tests with the address and undefined-behaviour sanitizers, 2,400 random calls on 1, 2, 3 and 7 threads,
# and its threads with the thread sanitizer.
SANITIZED := $(CURDIR)/build/sanitized
# -O0 and -g1, which names functions and lines: a minute to compile. Optimised, or with all that -g notes, it takes many.
SANITIZERS := -O0 -g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined
# What runs behind it uses the library built with sanitizers.
UNDER_SANITIZERS = PYTHONPATH=$(SANITIZED) ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
  LD_PRELOAD=$$($${CXX:-c++} -print-file-name=libasan.so):$$($${CXX:-c++} -print-file-name=libubsan.so)
SANITIZED_LIBRARY := $(SANITIZED)/gradcam_fast/_lib/libgradcam_fast_cpu.so
sanitize: $(SANITIZED_LIBRARY)
	OMP_NUM_THREADS=1 $(UNDER_SANITIZERS) $(BIN)/pytest -q $(PER_CORE) tests/soak/test_soak_operator.py \
	  $(addprefix tests/ops/,test_fused_kernel.py test_bad_input_of_the_op.py test_cam.py test_skinny_mm.py)
	$(PYTEST) -q -m slow tests/csrc/test_threads.py

$(SANITIZED_LIBRARY): $(DEV) $(BUILD_INPUTS) $(shell find gradcam_fast -name '*.py')
	rm -rf $(SANITIZED)
	CXXFLAGS='$(SANITIZERS)' GRADCAM_FAST_BUILD=cpu $(PIP) install -q --no-deps --no-build-isolation --target $(SANITIZED) .
	nm -D $@ | grep -q __asan_init
	cd build && $(UNDER_SANITIZERS) $(abspath $(BIN))/python -c 'import gradcam_fast; assert "/sanitized/" in gradcam_fast.__file__'
	touch $@

# At most an hour on two idle cores: random cases by the million, damaged files, kills, threads. SOAK=0.1 does a tenth;
# SOAK_SEED begins other cases. TESTING.md records what was run.
SOAK ?= 1
export SOAK_SEED
soak: $(SANITIZED_LIBRARY)
	SOAK=$(SOAK) OMP_NUM_THREADS=1 $(UNDER_SANITIZERS) $(BIN)/pytest -q $(PER_CORE) -m slow tests/soak/test_soak_operator.py
	SOAK=$(SOAK) $(PYTEST) -q -m '' tests/soak tests/csrc/test_threads.py tests/capture/test_capture_interrupted.py \
	  tests/test_model_never_notices.py tests/cli/test_interruption.py tests/cli/test_output_lock.py

# Installs the package beside other releases of torch, which takes minutes and up to 7 GB for each, and runs the tests of
# installs. TORCHES= names the releases: the oldest, the one without CUDA, the newest.
TORCHES ?= 2.10.0 2.13.0+cpu $(shell sed -n 's/^torch==//p' constraints.txt)
matrix: $(DEV)
	$(BIN)/python tests/build_tools/install_matrix.py build/matrix $(TORCHES)
	$(BIN)/python -m pytest -q -m slow tests/build_tools

# Compiles the CPU library for 64-bit ARM, and checks that it has no code for x86 instruction sets.
AARCH64_CXX ?= aarch64-linux-gnu-g++
aarch64: $(INSTALLED_TORCH)
	mkdir -p build
	for source in csrc/*.cpp csrc/*/*.cpp; do $(AARCH64_CXX) -Icsrc -std=c++17 -O3 -fPIC -ffp-contract=off -Wall -Wextra -c $$source \
	  -DTORCH_TARGET_VERSION=0x020a000000000000 -o build/aarch64.o \
	  -isystem $$($(BIN)/python -c 'import torch; print(torch.__path__[0])')/include || exit 1; \
	  ! nm -C build/aarch64.o | grep x86_64_v || exit 1; done

clean:
	rm -rf build dist *.egg-info gradcam_fast/_lib $(VENV)/.demo-* $(VENV)/.dev-*

# torch comes first: the kernels are built against it. Only Linux has builds for CUDA.
ifeq ($(TORCH)$(shell uname -s),cpuLinux)
TORCH_BUILD := +cpu
endif
pinned = $(1)==$(shell sed -n 's/^$(1)==//p' constraints.txt)$(TORCH_BUILD)
$(INSTALLED_TORCH): constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.version_info >= (3, 10) or sys.exit("gradcam_fast needs Python 3.10 or newer")'
ifeq ($(TORCH_BUILD),)
	@echo "[1/3] PyTorch: about 3 GB to load and 6 GB on disk with CUDA's libraries; make demo TORCH=cpu takes a tenth"
	$(PIP) install $(QUIET) -c constraints.txt setuptools torch torchvision
else
	@echo "[1/3] PyTorch without CUDA: about 0.3 GB to load and 1 GB on disk"
	$(PIP) install $(QUIET) $(addprefix --extra-index-url ,$(TORCH_INDEX)) setuptools $(call pinned,torch) $(call pinned,torchvision) || { \
	  echo "pip's package index has no $(call pinned,torch) with torchvision; give TORCH_INDEX=, the address that PyTorch's" \
	  "page \"Start locally\" shows for pip and CPU, or leave TORCH=cpu out"; exit 1; }
endif
	touch $@

# The tree holds one build at a time, so each kind of install removes the stamps of the others.
$(DEMO): $(INSTALLED_TORCH) $(BUILD_INPUTS)
	rm -f $(VENV)/.demo-* $(VENV)/.dev-*
	@echo "[2/3] gradcam_fast, editable, its command and a trained network: about 0.3 GB to load; then the kernels are" \
	  "compiled, which takes a minute or two"
	$(PIP) install $(QUIET) -c constraints.txt --no-build-isolation -e '.[demo]'
	@echo "[3/3] photos of a dog and a drum"
	-$(PIP) install $(QUIET) -c constraints.txt --no-deps foolbox
	touch $@

$(DEV): $(INSTALLED_TORCH) $(BUILD_INPUTS)
	rm -f $(VENV)/.demo-* $(VENV)/.dev-*
	if $(PIP) show -q cuda-toolkit && ! command -v nvcc; then $(PIP) install -q 'cuda-toolkit[cccl,nvcc]'; fi
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	-$(PIP) install -q -c constraints.txt --no-deps foolbox
	touch $@
