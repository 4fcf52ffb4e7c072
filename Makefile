# `make` alone says what there is. Everything needed is installed on first use, outside the checkout; on Debian as root
# nothing has to be there before but make.
RUN := hack/run
PYTHON := $(RUN) python
PYTEST := $(RUN) pytest
# The trainer's environment: torch, vLLM, and the same test tools.
TRAINER_PYTEST := $(PYTHON) -m tunesmith_cluster.environments run trainer -m pytest

TYPED := operator/src cluster/src
DOCKERFILES := operator/Dockerfile trainer-image/Dockerfile cluster/kind/engine.Dockerfile
SCRIPTS := hack/run hack/security hack/fuzz hack/packed .ci/run

.DEFAULT_GOAL := help
.PHONY: help console console-check console-test quickstart test check docs security fuzz generate verify unit chart install integration trainer packed long memory matrix \
	serving fleet queueing engines chaos argocd benchmark-serving benchmark-trainer soak autoscaling e2e teardown up cluster down clean quiet

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: ## from nothing to an answer of a tuned model: cluster, operator, training, serving
	@$(PYTHON) -m tunesmith_cluster.quickstart

# Of the matrix, each method, tuner, strategy and modality once.
CELLS := PreTraining-Full or SFT-Video or DPO-SeveralNodes or KTO-PEFT or CPO-ZeRO3 or SimPO-Audio or ORPO-QLoRA or \
	RewardModel-ZeRO1 or GRPO-ZeRO2 or PPO-Image or GKD-QLoRA or Classification-Image or Embedding-Full or Reranker-ZeRO2

# Without the tests that are marked `long`: more cases of what others show, too.
SLICE := -m 'not long'

# One after the other, whatever -j says: they share a cluster and its two cores. What is quick comes first; of the long
# suites a slice. `make trainer` and its like run the whole of one.
test: ## all tests, on a cluster of their own on this machine
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory security
	@$(MAKE) --no-print-directory console-check
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory chart
	@$(MAKE) --no-print-directory install
	@$(MAKE) --no-print-directory integration ONLY="$(SLICE)"
	@$(MAKE) --no-print-directory trainer ONLY="$(SLICE)"
	@$(MAKE) --no-print-directory serving ONLY="$(SLICE)"
	@$(MAKE) --no-print-directory memory
	@$(MAKE) --no-print-directory matrix ONLY="-k '$(CELLS)'"
	@$(MAKE) --no-print-directory e2e ONLY="$(SLICE)"
	@$(MAKE) --no-print-directory queueing ONLY="-k 'test_jobs and not cut_off'"
	@$(MAKE) --no-print-directory chaos CHAOS_MINUTES=1 CHAOS_JOBS=4

long: ## what `make test` leaves out: the browser's tests, and cases of trainer, engines, operator and pods
	@$(MAKE) --no-print-directory console-test
	@for suite in trainer serving integration e2e; do \
		$(MAKE) --no-print-directory $$suite ONLY='-m long' || exit 1; \
	done
	@$(MAKE) --no-print-directory packed

# Never on the cluster that a shell happens to point at.
test long quiet install console-test fleet autoscaling argocd integration queueing engines chaos e2e teardown: export KUBECONFIG =

check: verify docs ## formatting, lint, types, layers, Dockerfiles, scripts
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy $(TYPED)
	$(RUN) lint-imports
	$(RUN) hadolint $(DOCKERFILES)
	$(RUN) shellcheck $(SCRIPTS)

docs: ## the documentation as a site, in dist/site: every link leads somewhere, every page has its place
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs --quiet build --strict

security: ## zizmor, bandit and checkov over the tree (docs/threat-model.md)
	hack/security

# make fuzz FUZZ_SECONDS=600: for each of the tests.
export FUZZ_SECONDS
fuzz: ## the tests of outside input, on bytes that atheris chooses by coverage: a minute each
	hack/fuzz

generate: ## write the CRDs from the models, to crds/ and the chart, and tables of the docs
	$(PYTHON) -m tunesmith.schema .

verify: ## fail if a generated file is not what `make generate` would write
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(PYTHON) -m tunesmith.schema "$$folder" && \
	for generated in crds helm/tunesmith/templates/crds docs/reliability.md docs/capabilities.md docs/reasons.md docs/cli.md \
	  docs/kinds docs/methods; do \
	  diff -ru "$$generated" "$$folder/$$generated" || \
	    { echo "$$generated does not fit operator/src/tunesmith: run \`make generate\`" >&2; exit 1; }; \
	done

# Two at a time, one to a core: `make trainer WORKERS=1` where memory is short.
WORKERS := 2

unit: ## tests without a cluster
	$(PYTEST) -n $(WORKERS) --dist loadfile tests/unit tests/quickstart tests/packaging tests/gitops/test_health.py

console: ## build the web console's pages, and say how to see them
	@pages=$$($(PYTHON) -m tunesmith_cluster.console build) && \
	echo "TUNESMITH_CONSOLE_PAGES=$$pages hack/run python -m tunesmith.cli console"

console-check: ## the console: types, style, unit tests
	$(PYTHON) -m tunesmith_cluster.console check

console-test: quiet ## the console in headless Chromium, against a real cluster
	$(PYTEST) tests/console

chart: ## the chart, rendered by the real helm
	$(PYTEST) tests/chart

install: quiet ## the chart on a real API server: rights, upgrade, rollback, uninstall
	$(PYTEST) tests/install

integration: quiet ## the operator against a real API server and kubelet
	$(PYTEST) -n $(WORKERS) --dist loadfile tests/integration tests/gitops/test_drift.py tests/gitops/test_flux.py $(ONLY)

trainer: ## the trainer with real torch, transformers and peft
	$(TRAINER_PYTEST) -n $(WORKERS) --dist loadfile tests/trainer $(ONLY)

packed: ## LoRA over checkpoints of GPTQ and AWQ, by a gptqmodel that is built once
	hack/packed

serving: ## agent and guard with a real vLLM
	$(TRAINER_PYTEST) --durations=15 tests/serving $(ONLY)

export MATRIX_OUT
matrix: ## every supported combination (docs/capabilities.md), for real, on a tiny model
	$(TRAINER_PYTEST) tests/matrix $(ONLY)

memory: ## the estimate of memory against what torch really holds
	$(TRAINER_PYTEST) tests/memory

queueing: quiet ## Kueue, and the loss of one of two nodes
	$(PYTEST) tests/queueing $(ONLY)

# Builds LeaderWorkerSet once, two minutes on two cores. Two groups of real engines at once need 12 GB of memory.
engines: quiet ## a real vLLM over two pods, by LeaderWorkerSet's own controller
	$(TRAINER_PYTEST) --durations=15 tests/engines $(ONLY)

# 30 minutes, 20 jobs and seed 1 by default: make chaos CHAOS_MINUTES=5 CHAOS_JOBS=8 CHAOS_SEED=7 CHAOS_OUT=.
export CHAOS_MINUTES CHAOS_JOBS CHAOS_SEED CHAOS_OUT
chaos: quiet ## pods, ranks, nodes and operators killed at random while jobs run
	$(PYTEST) -s tests/chaos

fleet: quiet ## many pods: versions, placement, restarts, under load
	$(PYTEST) tests/fleet $(ONLY)

# SOAK_LOADS=40 SOAK_SEED=7 make soak: shorter, and another order. SOAK_OUT=.: the figures as a file, too.
soak: ## a real vLLM: 200 loads and unloads, kills of engine and agent, under 16 streams
	$(TRAINER_PYTEST) -s tests/soak

# Builds prometheus-adapter and KEDA's types once, four minutes on two cores; they stay in the cache.
autoscaling: quiet ## a HorizontalPodAutoscaler by prometheus-adapter; ScaledObjects by KEDA's types
	$(PYTEST) -s tests/autoscaling

# Builds Argo CD once, ten minutes on two cores.
argocd: quiet ## Argo CD's own controller: the Applications of examples/argocd
	$(PYTEST) tests/argocd $(ONLY)

# 1,000 adapters, 50 pods by default: make benchmark-serving ARGUMENTS='--adapters 100 --pods 10'
benchmark-serving: ## how fast pods follow many adapters, and what it costs the operator (benchmarks/serving)
	PYTHONPATH=tests:tests/fleet/app $(RUN) unshare --net python benchmarks/serving/run.py $(ARGUMENTS)

# ms-swift in an environment of its own; see benchmarks/trainer/README.md.
SWIFT := $(or $(TUNESMITH_CACHE),$(HOME)/.cache/tunesmith)/benchmark-swift

$(SWIFT)/bin/swift: benchmarks/trainer/swift.txt
	python3 -m venv --clear $(SWIFT)
	$(SWIFT)/bin/python -m pip install --quiet -r $<
	touch $@

benchmark-trainer: $(SWIFT)/bin/swift ## our trainer beside ms-swift's: losses and tokens per second (benchmarks/trainer)
	$(PYTHON) -m tunesmith_cluster.environments run trainer benchmarks/trainer/run.py --swift $(SWIFT)/bin/python $(ARGUMENTS)

e2e: quiet ## the whole way, in pods
	$(PYTEST) --durations=15 tests/e2e $(ONLY)

teardown: ## remove the cluster, and see that nothing of it is left (CI's last step)
	$(PYTEST) tests/teardown

# Tests bring their own operator; the one of a quickstart would work on their resources, too. `make quickstart` brings
# it back, and what it made stays.
quiet:
	@$(PYTHON) -m tunesmith_cluster.release uninstall

up: ## start the local cluster only
	@$(PYTHON) -m tunesmith_cluster up

cluster: NODES ?= 1
cluster: ## the same with NODES=2 nodes (more are left alone), with KUEUE=1 also Kueue, with LWS=1 LeaderWorkerSet
	@$(PYTHON) -m tunesmith_cluster up --nodes $(NODES) $(if $(KUEUE),--kueue) $(if $(LWS),--lws)

down: ## remove the cluster (of one that was there before, only what the quickstart made)
	@$(PYTHON) -m tunesmith_cluster.quickstart down

clean: ## remove what tools left in the checkout; the cache outside it stays
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache dist
	find . -name __pycache__ -prune -exec rm -rf {} +
