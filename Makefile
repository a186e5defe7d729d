# All commands for a clone of Sluice. `make` alone lists them.

.DEFAULT_GOAL := help
.PHONY: help setup demo cluster cluster-down conformance cyclonus image soak test unit mutants chart-test ansible-test cluster-test kernel-test kernel-bench noencap-bench \
    kills churn hostile fuzz bench lint docs lock clean need-root

PYTHON := .venv/bin/python
# Written when scripts/setup succeeded. If its prerequisites are newer, setup runs again.
READY := .venv/.ready
TESTS_READY := .venv/.ready-tests
CLUSTER_READY := .venv/.ready-cluster
# Seconds after which `make test` is stopped: several times its usual duration.
TEST_LIMIT ?= 7200
# The name of the lab of `make cluster`.
CLUSTER := cluster

# The scripts written in Python, which have no suffix.
SCRIPTS = $(shell grep -ls '^\#!.*python' scripts/*)

# KEEP=0 and KUBE=0 mean no.
KEEP_FLAG = $(if $(filter-out 0,$(KEEP)),--keep)

help: ## list all commands (this)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## install what Sluice needs: Debian packages, and Python ones in .venv (2 min)

$(READY): pyproject.toml requirements.lock scripts/setup
	@scripts/setup
	@touch $@

demo: need-root setup ## show that six pods on three nodes reach each other. KEEP=1: leave the lab up. KUBE=1: with a real API server
ifneq ($(filter-out 0,$(KUBE)),)
	@KUBEBUILDER_ASSETS=$$(scripts/kube-binaries) && export KUBEBUILDER_ASSETS && \
	    exec $(PYTHON) -m lab.demo --source kube $(KEEP_FLAG)
else
	@exec $(PYTHON) -m lab.demo $(KEEP_FLAG)
endif

cluster: need-root setup $(CLUSTER_READY) ## run a whole Kubernetes: nodes with kubelet and containerd (builds it once, 8 min). NODES=3. CONTROLLERS=2. MODE=noEncap or hybrid. SUBNETS=2. SLUICE=0: without Sluice
	@$(PYTHON) -m cli.main lab up --name $(CLUSTER) --kubelets $(if $(NODES),--nodes $(NODES)) \
	    $(if $(MODE),--mode $(MODE)) $(if $(SUBNETS),--subnets $(SUBNETS)) \
	    $(if $(filter 0,$(SLUICE)),--no-sluice,--controllers $(or $(CONTROLLERS),2))
	@echo "to look around:  .venv/bin/sluice lab exec --name $(CLUSTER) control -- kubectl get pods -A -o wide"
	@echo "to take it down: make cluster-down"

cluster-down: need-root setup ## remove that cluster completely
	@$(PYTHON) -m cli.main lab down --name $(CLUSTER)

conformance: cluster ## run the network tests of Kubernetes and of ClusterNetworkPolicy against that cluster (builds them once, 4 min). PROCS=2. FOCUS=REGEX: only these. SKIPPED=1: the skipped ones. MODE and SUBNETS as in cluster
	@exec $(PYTHON) -m lab.conformance --name $(CLUSTER) $(if $(FOCUS),--focus '$(FOCUS)') \
	    $(if $(PROCS),--procs $(PROCS)) $(if $(filter-out 0,$(SKIPPED)),--skipped)

cyclonus: cluster ## run Cyclonus against that cluster: 216 cases of NetworkPolicy (builds it once, 2 min). INCLUDE=TAG: only these. FIRST=N
	@exec $(PYTHON) -m lab.cyclonus_suite --name $(CLUSTER) $(if $(INCLUDE),--include $(INCLUDE)) $(if $(FIRST),--first $(FIRST))

image: setup ## build the container images of controller and agent: build/sluice-images.tar (1 min, then seconds)
	@SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct)} $(PYTHON) scripts/make-image $(IMAGE_ARGS)

examples: need-root setup ## run the commands that docs/ shows in a lab, and write down what they print
	@exec $(PYTHON) -m lab.examples

soak: need-root setup ## cause random faults in a cluster under traffic: MINUTES=2. SEED=N: repeat a run. KUBE=1: with a real API server
	@$(if $(filter-out 0,$(KUBE)),KUBEBUILDER_ASSETS=$$(scripts/kube-binaries) && export KUBEBUILDER_ASSETS &&) \
	    exec $(PYTHON) -m lab.soak --minutes $(or $(MINUTES),2) $(if $(SEED),--seed $(SEED)) \
	    $(if $(filter-out 0,$(KUBE)),--source kube) $(KEEP_FLAG)

test: need-root setup $(TESTS_READY) ## run all tests but those of ansible-test, cluster-test, kills and hostile (builds a Kubernetes once, 8 min). PYTEST_ARGS="-k NAME"
	@scripts/kube-images >/dev/null # also builds the programs, so that no test waits for them
	@scripts/kube-binaries --e2e >/dev/null
	@scripts/kube-binaries --rival >/dev/null
	@for tool in helm promtool cyclonus network_policy_api; do scripts/go-tool $$tool >/dev/null || exit; done
	@KUBEBUILDER_ASSETS=$$(scripts/kube-binaries) && export KUBEBUILDER_ASSETS && \
	    exec timeout --foreground --signal=INT --kill-after=300 $(TEST_LIMIT) .venv/bin/pytest -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

unit: setup ## run the tests that need no root, switch, lab or API server (less than 1 min). PYTEST_ARGS="-k NAME"
	@exec .venv/bin/pytest -q -n 2 -m unit $(PYTEST_ARGS)

mutants: need-root setup ## plant faults in a copy of the code and report those that no test finds. MUTANTS="--only NAME"
	@exec $(PYTHON) -m tests.mutants $(MUTANTS)

chart-test: need-root setup $(TESTS_READY) ## install, upgrade and remove the Helm chart: on an API server, and on a whole Kubernetes (5 min)
	@scripts/kube-images >/dev/null
	@exec .venv/bin/pytest tests/deploy/test_chart.py tests/deploy/test_monitoring.py tests/deploy/test_cluster.py $(PYTEST_ARGS)

ansible-test: need-root setup $(TESTS_READY) ## run the playbooks on test machines (some minutes; builds the machines once, 2 min)
	@exec .venv/bin/pytest -m ansible tests/ansible $(PYTEST_ARGS)

cluster-test: need-root setup $(TESTS_READY) ## test faults of a real Kubernetes: full disks, pods deleted during their ADD, kills (5 min)
	@scripts/kube-images >/dev/null
	@exec .venv/bin/pytest -m "cluster or not cluster" tests/lab/cluster $(PYTEST_ARGS)

hostile: need-root setup $(TESTS_READY) ## attack a lab, and print how much the victims lose; also in build/hostile.json. PYTEST_ARGS="-k NAME"
	@exec .venv/bin/pytest -m "hostile or not hostile" tests/hostile $(PYTEST_ARGS)

fuzz: need-root setup $(TESTS_READY) ## compare random policies with an evaluator of the API's text: SECONDS=60. SEED=N: repeat a run
	@exec $(PYTHON) -m tests.policy --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED))

churn: need-root setup $(TESTS_READY) ## change policies, labels and pods under new connections: SECONDS=300 for each of two tests
	@SLUICE_CHURN_SECONDS=$(or $(SECONDS),300) exec .venv/bin/pytest -q -s tests/lab/test_policy_churn.py

kills: need-root setup $(TESTS_READY) ## kill every daemon of a cluster under traffic, and print the loss (3 min)
	@scripts/kube-images >/dev/null
	@exec .venv/bin/pytest -q -s -m cluster tests/lab/cluster/test_kills.py

bench: need-root setup $(TESTS_READY) ## measure against OVN, kube-proxy, the bridge plugin and others (25 min; builds a Kubernetes once). BENCH_ARGS="--only NAME"
	@exec $(PYTHON) -m bench $(BENCH_ARGS)

kernel-test: need-root setup ## run the lab's tests on the kernel's datapath, in qemu (10 min; builds the machine once, 5 min). PYTEST_ARGS="tests/lab/test_x.py"
	@scripts/setup --kernel
	@exec $(PYTHON) -m tests.kernel $(PYTEST_ARGS)

kernel-bench: need-root setup $(TESTS_READY) ## measure against flannel and kube-proxy on the kernel's datapath, in qemu (15 min; builds the machine once, 5 min)
	@scripts/setup --kernel
	@exec $(PYTHON) -m bench.kernel $(BENCH_ARGS)

noencap-bench: need-root setup $(TESTS_READY) ## measure the mode noEncap against plain routing on the kernel's datapath, in qemu (10 min; builds the machine once, 5 min)
	@scripts/setup --kernel
	@exec $(PYTHON) -m bench.noencap $(BENCH_ARGS)

# Not part of setup: the demo does not need these packages.
$(TESTS_READY): scripts/setup
	@scripts/setup --tests
	@mkdir -p $(@D) && touch $@

$(CLUSTER_READY): scripts/setup
	@scripts/setup --cluster
	@mkdir -p $(@D) && touch $@

lint: setup ## check the code with ruff, mypy, import-linter and ansible-lint, and that what is generated is up to date (builds Helm once, 2 min)
	.venv/bin/ruff check . $(SCRIPTS)
	.venv/bin/ruff format --check . $(SCRIPTS)
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PYTHON) scripts/make-docs --check
	$(PYTHON) scripts/make-chart --check
	PATH="$$(scripts/ansible):$$PATH" && cd ansible && ansible-lint --offline -q

docs: setup ## generate the parts of docs/ that come from code, and deploy/kustomize/base from the chart (builds Helm once, 2 min)
	$(PYTHON) scripts/make-docs
	$(PYTHON) scripts/make-chart

# uv, because pip cannot write hashes, and resolves only for its own Python version. Locked versions
# stay; to update all of them, remove the lock file first.
COMPILE = .venv/bin/uv pip compile --quiet --generate-hashes --python-version 3.11 --no-annotate
PRUNED = requirements-pruned.txt
lock: setup ## update the lock files from pyproject.toml and ansible/requirements.in
	$(PYTHON) -m pip install --quiet uv==0.13.9
	$(COMPILE) pyproject.toml --extra lab --group dev --override $(PRUNED) -o requirements.lock
	for part in agent controller; do $(COMPILE) pyproject.toml --extra $$part --group build --override $(PRUNED) \
	    --constraint requirements.lock -o requirements-$$part.lock || exit; done
	$(COMPILE) ansible/requirements.in -o ansible/requirements.lock

clean: ## remove .venv and generated files in the tree (running labs and ~/.cache/sluice stay)
	rm -rf .venv build *.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

need-root:
	@[ "$$(id -u)" = 0 ] || { echo "the lab makes network namespaces, which needs root: sudo make $(MAKECMDGOALS)" >&2; exit 1; }
