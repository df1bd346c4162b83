.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export UV_PYTHON_DOWNLOADS := never
# Tests, benches and the demo run from the working tree.
export PYTHONPATH := tools

.PHONY: help
help: ## List all targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

.PHONY: install
install: $(VENV)/.installed ## Install the project and its locked dependencies into .venv

$(VENV)/.installed: requirements-dev.lock pyproject.toml
	@tools/install $(PYTHON) $(VENV)
	@touch $@

.PHONY: lock
lock: install ## Resolve the dependencies anew and write the lock files
	$(BIN)/python -m uv pip compile -q pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url -o requirements.lock
	$(BIN)/python -m uv pip compile -q pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url -c requirements.lock -o requirements-dev.lock
	echo hatchling | $(BIN)/python -m uv pip compile -q - --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url -c requirements-dev.lock -o deploy/requirements-build.lock
	echo watchfiles | $(BIN)/python -m uv pip compile -q - --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url -c requirements-dev.lock -c requirements.lock -o deploy/requirements-reload.lock

.PHONY: check
check: install ## Format, lint, types, import layers and unit tests, in seconds
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/unit

.PHONY: docs
docs: install ## Build the documentation as a site into site/; a dead link or anchor is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean

.PHONY: reference
reference: install ## Write the tables of flags, annotations, metrics, Events and chart values anew from the code
	@$(BIN)/python tools/reference.py

.PHONY: drawings
drawings: install ## Draw the documentation's drawings anew
	@$(BIN)/python tools/drawings.py

.PHONY: test
test: install check ## Install what the tests run, and run all of them, faults and nodes beside the rest
	@tools/test-programs
	@tools/test-programs node
	@$(BIN)/python tools/side_by_side.py \
		product="$(BIN)/pytest --durations=20 tests/contract tests/cluster tests/security" \
		faults="$(BIN)/pytest --durations=20 tests/chaos && $(MAKE) --no-print-directory test-node"

.PHONY: test-security
test-security: install ## Run the tests that the table of attacks names (docs/attacks.md)
	@tools/test-programs
	$(BIN)/pytest -q -m security tests

.PHONY: test-node
test-node: install ## Run the product on real nodes: containerd, runc and kubelet (root; without it, says so and does nothing)
	@tools/test-programs node
	@$(BIN)/python tools/node_tests.py $(ARGS)

.PHONY: image-reproducible
image-reproducible: install ## Build the image twice, and compare the two bit for bit (root; a minute or two)
	@tools/test-programs
	$(BIN)/pytest -q tests/cluster/test_image.py -k bit_for_bit

.PHONY: properties
properties: export OPERATIONS ?= 1000000
properties: install ## Compare every store with its specification over a million random operations (OPERATIONS=n, SEED=n)
	@tools/test-programs
	$(BIN)/pytest -q tests/contract/test_stateful.py

.PHONY: chaos
chaos: install ## Run seeded faults against real processes and check what they recorded: RUNS=40 SEED=1, or POINTS=10
	@tools/test-programs
	@$(BIN)/python -m tests.chaos --runs $(or $(RUNS),40) --points $(or $(POINTS),0) --seed $(or $(SEED),1)

.PHONY: sbom
sbom: install ## Write the bill of materials of the image's Python packages (CycloneDX) to dist/sbom.cdx.json
	@$(BIN)/python tools/sbom.py

.PHONY: bench
bench: install ## Measure admissions beside a no-op, latencies and memory (a few minutes; nothing else should run)
	$(BIN)/python bench/admissions.py

.PHONY: bench-sidecar
bench-sidecar: install ## Measure how long a sidecar takes to start, beside Python alone (seconds)
	@$(BIN)/python bench/sidecar_start.py

.PHONY: bench-handover
bench-handover: install ## Measure hand-over, order, throughput and faults on a control plane (five minutes; nothing else should run)
	$(BIN)/python bench/handover.py

.PHONY: bench-scale
bench-scale: install ## Measure each operation at 100,000 holders beside 10 (two minutes; nothing else should run)
	$(BIN)/python bench/scale.py

.PHONY: bench-failover
bench-failover: install ## Measure for how long admissions fail when a server is lost (three minutes; nothing else should run)
	$(BIN)/python bench/failover.py

.PHONY: bench-certificates
bench-certificates: install ## Rotate the certificate of two replicas 100 times under load, without a failed admission
	$(BIN)/python bench/rotation.py

.PHONY: bench-permits
bench-permits: install ## Measure what 10,000 sidecars in api mode cost a replica (four minutes; nothing else should run)
	@$(BIN)/python bench/permits.py --sidecars $(or $(SIDECARS),10000)

.PHONY: bench-flood
bench-flood: install ## Measure memory and admissions while clients flood the webhook's port (three minutes; nothing else should run)
	$(BIN)/python bench/flood.py --seconds $(or $(SECONDS),20)

.PHONY: demo
demo: install ## Show the whole system at work on a real control plane of its own, in seconds
	@$(BIN)/python tools/demo.py

.PHONY: pictures
pictures: install ## Take the pictures of the documents of a live run (six minutes; chromium, and Go for Prometheus)
	@tools/test-programs
	@$(BIN)/python -m pictures $(ARGS)

.PHONY: dev
dev: ## Develop in the current cluster with skaffold, or, where there is none, as dev-local
	@tools/dev $(MAKE) --no-print-directory dev-local

.PHONY: dev-local
dev-local: install ## Run a control plane, a store, and the webhook restarting on each saved source file
	@$(BIN)/python tools/dev_local.py
