# The three commands: make demo, make test, make lint. Each installs what it needs into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Python compiles what it imports, so pip need not compile all of every package: half of the installation's time.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile
TORCH := "torch>=2.9,<2.14"
DEMO := demo-artifact
# Collecting all tests takes 20 s a process. What takes longest comes first, so that all processes end together.
COMPAT := tests/compat/test_wheel.py tests/serving/test_ray_cluster.py tests/compat tests/docs tests/examples
WORKERS ?= $(shell echo $$(( $$( (nproc || getconf _NPROCESSORS_ONLN) 2>/dev/null ) + 1 ))) # one more than cores: some tests wait
PROMPT := fox has red lamp, owl has blue cup, bear has green key, cat has old map, swan has heavy bell, \
	crab has blue key, duck has empty bottle, wolf has red cup. crab has
# Where it is set, each of the tests' processes compiles all tests and this package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: bench conformance-archive wheel wheel-aarch64 docs demo demo-build demo-engines test test-fast mutants fuzz attacks test-compat test-families lint gpu-check gpu-static clean

demo: STARTED := $(shell date +%s)
demo: $(VENV)/.demo
	$(BIN)/lucid-deploy export demo --output $(DEMO) --overwrite
	$(BIN)/lucid-deploy verify $(DEMO)
	@echo 'Prompt: $(PROMPT)'
	$(BIN)/lucid-deploy run $(DEMO) --prompt '$(PROMPT)'
	@$(MAKE) --no-print-directory demo-engines
	@echo "make demo took $$(( $$(date +%s) - $(STARTED) )) s."

# Kernels for one compute capability and type, which is quick; their library stays in $(VENV). A build that fails fails here.
demo-engines: $(VENV)/.demo
	@if [ "$$(uname -sm)" != "Linux x86_64" ]; then \
		echo "No TensorRT engines: TensorRT-RTX is for Linux on x86-64."; \
	elif ! { for name in $${CXX:-g++ c++ clang++}; do command -v $$name && break; done; } >/dev/null; then \
		echo "No TensorRT engines: the plugin needs a C++ compiler. Install g++ or clang++."; \
	elif ! $(MAKE) --silent --no-print-directory $(VENV)/.rtx >$(VENV)/rtx.log 2>&1; then \
		echo "No TensorRT engines: TensorRT-RTX and Triton could not be installed, see $(VENV)/rtx.log."; \
	else \
		$(MAKE) --no-print-directory demo-build; \
	fi

demo-build:
	$(BIN)/lucid-deploy plugin build --target tensorrt --arch 8.6 --dtype float32 --head-dim 64 --output $(VENV)/liblucid_tensorrt.so
	$(BIN)/lucid-deploy build $(DEMO) --plugin $(VENV)/liblucid_tensorrt.so --overwrite
	@echo "A machine with an NVIDIA GPU adds: lucid-deploy verify $(DEMO) --runtime tensorrt, and make gpu-check"

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not compat" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-fast: $(VENV)/.dev # while you work: no exports, servers or compilers; under two minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not (compat or slow or tensorrt)" -n $(WORKERS) --dist loadfile

attacks: $(VENV)/.dev # attacks on the server, on a quiet machine: nobody may wait for more than a second
	OMP_NUM_THREADS=1 LUCID_ATTACKS_UNSCALED=1 $(BIN)/python -m pytest tests/attacks -rP

fuzz: $(VENV)/.dev # random files and bodies, longer attacks, and faults at every call of the system; make test runs a few of each
	OMP_NUM_THREADS=1 LUCID_FUZZ_EXAMPLES=$(or $(EXAMPLES),5000) $(BIN)/python -m pytest tests/fuzz tests/faults tests/attacks -n $(WORKERS)

mutants: $(VENV)/.dev # seeded faults, each of which must make its tests fail; FAULTS="words in names" chooses
	$(BIN)/python -m tests.mutants $(FAULTS)

# What takes minutes: exported graphs in several runtimes and versions, long pages' commands, Ray. Needs Node and Chromium.
test-compat: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(COMPAT) -m compat -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-families: $(VENV)/.dev # every causal language model of transformers: right, or refused; writes docs/families.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.families.sweep

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typed && mkdir -p build/typed/lucid_deploy # one package of the four folders, as it is installed
	cd build/typed/lucid_deploy && ln -s $(addprefix ../../../,lucid_deploy/* export plugins conformance) .
	$(BIN)/mypy build/typed/lucid_deploy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: $(VENV)/.dev # most figures of docs/performance.md; about a quarter of an hour, 14 GB of disk
	$(BIN)/lucid-deploy plugin build --target onnxruntime
	for script in precondition_operator delta_rule_operator medium_model peers long_context large_model start_up quantized cache_types batching serve_load; do \
		$(BIN)/python benchmarks/$$script.py || exit 1; \
	done

wheel: $(VENV)/.wheel # an sdist and a wheel with compiled kernels, into dist; WHEEL=--cpu-only leaves the plugin out
	$(BIN)/python .ci/build_wheel.py $(WHEEL)

wheel-aarch64: $(VENV)/.wheel # the same for aarch64, with CPU kernels; needs Debian's g++-aarch64-linux-gnu
	$(BIN)/python .ci/build_wheel.py --machine aarch64

conformance-archive: $(VENV)/.dev # the conformance cases and their runner without the toolkit, for a release, into dist
	rm -rf build/lucid-conformance && mkdir -p build/lucid-conformance dist
	$(BIN)/lucid-deploy conformance --write build/lucid-conformance/cases
	cp conformance/run.py conformance/README.md build/lucid-conformance
	tar -C build -czf dist/lucid-conformance.tar.gz lucid-conformance

docs: $(VENV)/.dev # the documentation as a site, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

gpu-check: $(VENV)/.dev # on a machine with an NVIDIA GPU: what cannot run elsewhere, results to benchmarks/results/
	$(BIN)/python -m tools.gpu.gpu_check

gpu-static: $(VENV)/.dev # run the tools' tests, then look for spills in the GPU kernels' machine code, no GPU needed; ARCH=80 does one
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tools -n $(WORKERS) --dist loadfile
	$(BIN)/python -m tools.gpu.gpu_static $(if $(ARCH),--arch $(ARCH))

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "lucid-deploy needs Python 3.11 or newer; choose one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# PyPI's PyTorch for Linux brings 4 GB of CUDA. Without a GPU, take the CPU's from PyTorch's own index if it answers.
$(VENV)/.torch: $(VENV)/.python
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
		$(INSTALL) --retries 0 --timeout 15 \
			--index-url https://download.pytorch.org/whl/cpu $(TORCH) 2>$(VENV)/torch.log \
		|| echo "PyTorch's index of CPU wheels does not answer, see $(VENV)/torch.log; taking PyTorch from the usual one."; \
	fi
	$(INSTALL) $(TORCH)
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(INSTALL) --editable ".[cpu,export]"
	@touch $@

$(VENV)/.rtx: $(VENV)/.torch pyproject.toml
	$(INSTALL) --editable ".[cpu,export,rtx,kernels]"
	@touch $@

$(VENV)/.wheel: $(VENV)/.python pyproject.toml
	$(INSTALL) --editable ".[cpu,export,kernels,wheel]"
	@touch $@

# uv installs these in a third of pip's time. It does not read pip's settings, for example the address of a mirror.
DEV := --editable ".[cpu,export,openvino,rtx,kernels,serve,guided,ray,eval,transformers,docs,dev]"
$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(INSTALL) uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(DEV) || { echo "uv failed, see above; taking pip."; $(INSTALL) $(DEV); }
	@touch $@
