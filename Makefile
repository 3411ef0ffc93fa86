# Every target sets up .venv by itself when it is missing or older than the lock.
.DEFAULT_GOAL := help
PY ?= $(shell tools/pick-python)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test check lock bench-admission bench-diagnosis bench-engine-settings bench-gate bench-gate-quants bench-judge-trial bench-overhead bench-placement bench-prefix bench-promise bench-quantization bench-replay bench-replay-referee bench-route bench-route-live bench-route-sessions bench-semantic bench-semantic-latency bench-shadow-live bench-speculation bench-telemetry bench-traces clean
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 24

$(VENV)/.base: requirements.lock pyproject.toml
	@python=$(PY); $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Trimtab needs Python >= 3.11 with venv (Debian: apt-get install python3-venv); set PY=/path/to/python3"; exit 1; }; \
	  echo "Setting up $(VENV) with $$python (once; a minute or two) ..."; test -x $(BIN)/python || $$python -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base requirements-dev.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

demo: $(VENV)/.base ## replay real customer questions, levers off then on, on the embedded model (under 6 minutes)
	@$(BIN)/trimtab demo

test: $(VENV)/.dev ## the whole test suite: real servers, real clients, no network but the package index
	@$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.dev ## lint, types, import contracts
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

lock: ## refresh the locks (needs uv); they hold hashes and name no host
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  --extra semantic pyproject.toml -o requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  -c requirements.lock --group dev pyproject.toml -o requirements-dev.lock

bench-admission: $(VENV)/.dev ## is the queue in front of an engine fair, and what is left of goodput under overload (four minutes)
	@$(BIN)/python bench/admission.py

bench-levers: $(VENV)/.dev ## what each lever is worth on the embedded engine, one more at each step (under 45 minutes, resumable)
	@$(BIN)/python bench/levers.py

bench-gate-quants: $(VENV)/.dev ## which quantization of the embedded model may serve: the gate on the real engine (under twenty minutes)
	@$(BIN)/python bench/gate_quants.py

bench-judge-trial: $(VENV)/.dev ## may the embedded model judge answers: DATA=folder of routing data (ten minutes)
	@test -n "$(DATA)" || { echo "say where the pairs are: make bench-judge-trial DATA=folder (see bench/README.md)"; exit 2; }
	@$(BIN)/python bench/judge_trial.py --data $(DATA)

bench-overhead: $(VENV)/.dev ## CPU per request beside nginx, LiteLLM and others, in one run (about ten minutes)
	@$(BIN)/python bench/overhead.py

bench-replay: $(VENV)/.dev ## is `trimtab replay` right, and how much load can it make (a minute and a half)
	@$(BIN)/python bench/replay.py

bench-replay-referee: $(VENV)/.dev ## do `trimtab replay` and aiperf say the same of one server (four minutes)
	@$(BIN)/python bench/referee.py

bench-speculation: $(VENV)/.dev ## guessing tokens by n-grams: where it pays, where it is refused, what the gate says (a quarter of an hour)
	@$(BIN)/python bench/speculation.py

bench-quantization: $(VENV)/.dev ## the embedded model in several types: sizes, and how often they agree with its F16 (three minutes)
	@$(BIN)/python bench/quantization.py

bench-engine-settings: $(VENV)/.dev ## weights in huge pages, no flash attention, an engine for each core (some twenty minutes)
	@$(BIN)/python bench/engine_settings.py

bench-traces: $(VENV)/.dev ## replay four real traces against the embedded model: is every length right (ten minutes)
	@$(BIN)/python bench/traces.py

bench-telemetry: $(VENV)/.dev ## what OpenTelemetry costs a request (a minute)
	@$(BIN)/python bench/telemetry.py

bench-prefix: $(VENV)/.dev ## a prefix that the engine has read: first token of warm prompts beside cold ones (about ten minutes)
	@$(BIN)/python bench/prefix.py

bench-promise: $(VENV)/.dev ## how often does the semantic cache's promise break, on streams whose truth is known (fifteen minutes)
	@$(BIN)/python bench/promise.py

bench-gate: $(VENV)/.dev ## how often is the quality gate wrong, and how many items it needs, by simulation (six to twelve minutes)
	@$(BIN)/python bench/gate.py

bench-semantic: $(VENV)/.dev ## does the semantic cache keep its promise: DATA=folder of public questions (fifteen minutes)
	@test -n "$(DATA)" || { echo "say where the questions are: make bench-semantic DATA=folder (see bench/README.md)"; exit 2; }
	@$(BIN)/python bench/semantic.py --data $(DATA)

bench-route: $(VENV)/.dev ## does routing keep its quality and save: DATA=folder of recorded outcomes (three minutes)
	@test -n "$(DATA)" || { echo "say where the outcomes are: make bench-route DATA=folder (see bench/README.md)"; exit 2; }
	@$(BIN)/python bench/route.py --data $(DATA)

bench-route-live: $(VENV)/.dev ## is routing through the gateway what it is offline: DATA=folder with both models' answers (a minute)
	@test -n "$(DATA)" || { echo "say where the answers are: make bench-route-live DATA=folder (see bench/README.md)"; exit 2; }
	@$(BIN)/python bench/route_live.py --data $(DATA)

bench-route-sessions: $(VENV)/.dev ## do agents' sessions keep their model: TRACE=file of recorded calls (a minute)
	@test -n "$(TRACE)" || { echo "say where the calls are: make bench-route-sessions TRACE=file (see bench/README.md)"; exit 2; }
	@$(BIN)/python bench/route_sessions.py --trace $(TRACE)

bench-placement: $(VENV)/.dev ## which replica gets a request, on simulated replicas: DATA=folder of traces (a minute)
	@test -n "$(DATA)" || { echo "say where the traces are: make bench-placement DATA=folder (see bench/README.md)"; exit 2; }
	@$(BIN)/python bench/placement.py --data $(DATA)

bench-semantic-latency: $(VENV)/.dev ## how long a look-up takes among 100,000 and 1,000,000 questions: DATA=folder (ten minutes)
	@test -n "$(DATA)" || { echo "say where the questions are: make bench-semantic-latency DATA=folder (see bench/README.md)"; exit 2; }
	@$(BIN)/python bench/semantic_latency.py --data $(DATA)

bench-diagnosis: $(VENV)/.dev ## four states provoked on the embedded engine: is each named right (under a minute)
	@$(BIN)/python bench/diagnosis.py

bench-shadow-live: $(VENV)/.dev ## a candidate turns bad in a live A/B test: when is it switched off (a minute)
	@$(BIN)/python bench/shadow_live.py

clean: ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
