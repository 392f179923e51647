# Targets that need a real vLLM. It gets an environment of its own (.venv-vllm), because it pins other versions than
# kvpool does. `make validate VLLM_PYTHON=/path/to/python` uses an environment that is there already.

VLLM_LOCK := validation/requirements-vllm.lock

ifeq ($(origin VLLM_PYTHON),undefined)
VLLM_PYTHON := .venv-vllm/bin/python
VLLM_READY  := .venv-vllm/.installed
endif

.venv-vllm/.installed: $(VLLM_LOCK) validation/make_env.sh pyproject.toml
	PYTHON=$(PYTHON) bash validation/make_env.sh .venv-vllm
	@touch $@

# Tests that are skipped where there is no vLLM. Each file has a process of its own: a real engine does not start in one
# that has loaded Numba.
NEED_VLLM := tests/validation/test_operations.py \
  $(filter-out %/test_recorded_vllm.py,$(wildcard tests/validation/test_*_vllm.py))

.PHONY: validate
validate: $(VLLM_READY)  ## compare with a real vLLM 0.32.0 on this machine's CPU: recordings, random cases, engines
	$(VLLM_PYTHON) -m validation run $(VALIDATE_ARGS)
	for file in $(NEED_VLLM); do $(VLLM_PYTHON) -m pytest -p no:cacheprovider $$file $(PYTEST_ARGS) || exit 1; done
	$(VLLM_PYTHON) -m validation serve-options
	$(VLLM_PYTHON) -m validation sizing --quick --mixes 1000
	$(VLLM_PYTHON) -m validation.mutations

.PHONY: validate-releases
validate-releases: $(VLLM_READY)  ## compare with the real control planes and planners of other vLLM releases (RELEASES="0.14 0.25"; fetches wheels)
	$(VLLM_PYTHON) -m validation releases fetch $(RELEASES)
	$(VLLM_PYTHON) -m validation releases check $(RELEASES) $(RELEASES_ARGS)

.PHONY: fuzz
fuzz: $(VLLM_READY)  ## random cases against a real vLLM (FUZZ_ARGS="--minutes 10 --seed 1")
	$(VLLM_PYTHON) -m validation fuzz $(FUZZ_ARGS)

.PHONY: bench-vllm
bench-vllm: $(VLLM_READY)  ## the simulator's speed against a real vLLM's control plane (BENCH_ARGS=...)
	$(VLLM_PYTHON) -m validation bench $(BENCH_ARGS)

.PHONY: mutations
mutations: $(STAMP)  ## plant each deliberate fault in a copy of the kernel: its named test must fail (docs/mutations.md)
	$(PY) -m validation.mutations $(MUTATIONS_ARGS)
