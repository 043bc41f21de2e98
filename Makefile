# The three commands: make demo, make test, make lint. Each installs what it needs into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo-artifact
WORKERS ?= auto
PROMPT := fox has red lamp, owl has blue cup, bear has green key, cat has old map, swan has heavy bell, \
	crab has blue key, duck has empty bottle, wolf has red cup. crab has

.PHONY: bench demo test lint gpu-check clean

demo: $(VENV)/.demo
	$(BIN)/lucid-deploy export demo --output $(DEMO) --overwrite
	$(BIN)/lucid-deploy verify $(DEMO)
	@echo 'Prompt: $(PROMPT)'
	$(BIN)/lucid-deploy run $(DEMO) --prompt '$(PROMPT)'

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile # one core per worker

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev # every figure of docs/performance.md; about a quarter of an hour, 14 GB of disk
	for script in precondition_operator medium_model long_context large_model start_up; do \
		$(BIN)/python bench/$$script.py || exit 1; \
	done

gpu-check: $(VENV)/.dev # on a machine with an NVIDIA GPU: what cannot run elsewhere, results to bench/results/
	$(BIN)/python bench/gpu_check.py

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "lucid-deploy needs Python 3.11 or newer; choose one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[cpu]"
	@touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[cpu,rtx,kernels,bench,dev]"
	@touch $@
