# `make` lists the targets.
.DEFAULT_GOAL := help
.PHONY: help run demo demo-checkpoints test test-servers test-languages build build-cli install dist deb url-is-given hash-tags lint package public-api fuzz valgrind bench bench-checkpoints bench-instructions bench-growth bench-planning bench-waiting bench-micro prerequisites

# The server to run or test with, its port and data folder, and where `install` puts the module.
SERVER ?= redis-server
PORT ?= 6380
DATA ?= data
PREFIX ?= /usr/local

target := $(or $(CARGO_TARGET_DIR),target)
module := $(abspath $(target))/release/libpmcptask.so
command := $(abspath $(target))/release/pmcptask
# List of the servers to test with, one per line: name and path.
servers := $(or $(SERVERS),$(target)/servers/servers)
newest_valkey := $(abspath $(target))/servers/valkey-9-newest/valkey-server
valkey := $(if $(wildcard $(newest_valkey)),$(newest_valkey),$(shell command -v valkey-server))
installed := $(PREFIX)/lib/redis/modules/libpmcptask.so

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{ printf "  make %-19s %s\n", $$1, $$2 }'
	@echo 'What runs a server asks before it installs missing packages. YES=1 answers yes. Nothing else installs packages.'

# What a target needs besides Rust, a C compiler and libclang. `check` says what is missing, `install` asks whether to
# install it. Targets that a target is made from take its words.
needs = check
demo demo-checkpoints test test-servers: needs = install redis-server
run bench bench-checkpoints bench-growth bench-planning bench-waiting: needs = install $(filter redis-server,$(SERVER))
test-languages: needs = install node npm python3-venv $(filter redis-server,$(SERVER))
valgrind bench-instructions: needs = install valgrind $(filter redis-server,$(SERVER))
lint: needs = check cargo-deny
fuzz: needs = check cargo-fuzz
dist: needs = check python3-venv
deb: needs = check python3-venv cargo-deb
public-api: needs = check cargo-public-api

run: build ## Run a server with the module on 127.0.0.1:6380; PORT=, DATA= and SERVER= change that
	@SERVER='$(SERVER)' PORT='$(PORT)' DATA='$(abspath $(DATA))' scripts/run-server.sh '$(module)'

demo: prerequisites ## Show that MCP tasks outlive the MCP server that runs them
	cargo run --locked --quiet --package pmcptask-client --example mcp_task_demo

demo-checkpoints: prerequisites ## Show that agents go on in another process after theirs was killed
	cargo run --locked --quiet --package pmcptask-checkpoint --all-features --example resumed_graph
	cargo run --locked --quiet --package pmcptask-checkpoint --all-features --example resumed_flow

# Tests mostly wait for their servers, so more run at once than there are processors.
test test-servers: export RUST_TEST_THREADS ?= $(shell echo $$((3 * $$(getconf _NPROCESSORS_ONLN))))

test: prerequisites ## Run all tests against real servers
# A test runs this program. Building it then would disturb the other tests.
	@cargo build --locked --quiet --workspace --all-features --bin pmcptask
	cargo test --locked --workspace --all-features
ifndef PMCPTASK_SERVER
ifdef valkey
	PMCPTASK_SERVER='$(valkey)' cargo test --locked --workspace --all-features --test '*'
else
	@echo 'No valkey-server is available, so the tests ran with redis-server only. make test-servers gets more servers.'
endif
endif

test-servers: prerequisites ## Run the suites on each server of SERVERS= (default, on Debian: eight servers); ONLY=, SUITES= limit that
	@$(if $(SERVERS),,scripts/get-servers.sh '$(target)/servers')
	@scripts/test-servers.sh '$(servers)'

test-languages: build ## Run the examples for Python and Node on one server and in a cluster (downloads their packages)
	@SERVER='$(SERVER)' scripts/test-languages.sh '$(module)' '$(target)/languages'

build: prerequisites ## Build the module in release mode
	cargo build --locked --release --package pmcptask

build-cli: prerequisites
	cargo build --locked --release --package pmcptask-cli

install: build build-cli ## Install the module and the command pmcptask under PREFIX (/usr/local); print the line for redis.conf
	@scripts/install.sh '$(module)' '$(DESTDIR)$(installed)' \
	  '$(command)' '$(DESTDIR)$(PREFIX)/bin/pmcptask'
	@echo 'Add this line to redis.conf and restart the server:'
	@echo '  loadmodule $(installed)'

dist: prerequisites ## Write module and command for every Linux on x86_64 to target/dist: archive and checksum (downloads a linker)
	@scripts/dist.sh '$(target)/dist'

deb: dist ## Write module and command as a package for Debian and Ubuntu to target/dist (needs cargo-deb)
	SOURCE_DATE_EPOCH="$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct)}" cargo deb --locked --package pmcptask \
	  --no-build --no-strip --profile packaged --target x86_64-unknown-linux-gnu --output '$(target)/dist/'

# Checked before the build, which takes a minute.
url-is-given:
	@$(if $(URL),:,echo 'URL= is missing: make hash-tags URL=redis://127.0.0.1:6379' >&2; exit 1)

hash-tags: url-is-given build-cli ## Move the tasks of URL= to keys with hash tags, which a cluster needs; TO=off moves back; KEYS= is the prefix
	@'$(command)' hash-tags '$(or $(TO),on)' '$(URL)' --prefix '$(or $(KEYS),pmcp)'

lint: prerequisites ## Check formatting, lints, the pages of cargo doc and dependencies
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
	cargo clippy --locked --package pmcptask-client --package pmcptask-checkpoint -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --workspace --all-features
	cargo deny --all-features check

published := $(addprefix --package ,pmcptask-schema pmcptask-client pmcptask-checkpoint pmcptask)
package: prerequisites ## Check that the crates can be published, by a dry run of cargo publish
	cargo publish --dry-run --locked --allow-dirty $(published)

# The diff of these files shows each change of what users can call.
public-api: prerequisites ## Write what each library offers to its public-api.txt (needs cargo-public-api and a nightly toolchain)
	for crate in schema client checkpoint cli; do \
	  cargo public-api --package "pmcptask-$$crate" --all-features -sss >'$(target)/public-api.txt' || exit 1; \
	  mv '$(target)/public-api.txt' "$$crate/public-api.txt"; \
	done

fuzz: prerequisites ## Fuzz the argument grammar and the record envelope for FUZZ_SECONDS (60) each
	cd schema && for target in argument_grammar record_envelope; do \
	  cargo fuzz run --sanitizer none $$target -- -max_total_time=$(or $(FUZZ_SECONDS),60) || exit 1; \
	done

valgrind_logs := $(abspath $(target))/valgrind
valgrind_suites := access atomicity bad_input cluster_slots command_docs commands compatibility conformance index \
  model no_crash_no_leak old_backend replication wait_command

# Left out: walks over very many keys, because valgrind leaves too little time for the walk's share of time; the
# server's count of its memory, which is different under valgrind; and the Lua backend, which calls no command of the
# module.
valgrind_skips := an_unlink_of_a_quarter_of_a_million_tasks what_the_server_has_expired a_hundred_thousand_owners \
  whatever_hz no_command_takes_longer a_million_operations_leave_used_memory_where_it_was \
  redis_lua::

valgrind: prerequisites ## Run suites on a server under valgrind; fail if it finds anything in the module
	rm -rf '$(valgrind_logs)' && mkdir -p '$(valgrind_logs)'
	SERVER='$(SERVER)' VALGRIND_LOGS='$(valgrind_logs)' PMCPTASK_SLOWNESS=40 \
	  PMCPTASK_MODEL_OPERATIONS=3000 PMCPTASK_SERVER='$(abspath scripts/server-under-valgrind.sh)' \
	  PMCPTASK_CLI='$(subst -server,-cli,$(SERVER))' \
	  cargo test --locked --no-fail-fast --package pmcptask-tests --features redis-tests $(addprefix --test ,$(valgrind_suites)) \
	  -- $(addprefix --skip ,$(valgrind_skips))
	@if grep -l 'libpmcptask' '$(valgrind_logs)'/*.log; then echo 'valgrind found something in the module'; exit 1; fi
	@echo "$$(ls '$(valgrind_logs)' | wc -l) servers ran under valgrind; it found nothing in the module"

# Folder for figures, tables and plots. Quick figures and those of another server than the published ones replace none: they go to the
# target folder.
bench_folder := $(if $(BENCH_QUICK)$(filter-out redis-server,$(SERVER)),$(target)/performance,docs/performance)
bench = PMCPTASK_SERVER='$(SERVER)' PMCPTASK_MODULE='$(module)' \
  cargo run --locked --quiet --release --package pmcptask-bench --

bench: build bench-checkpoints ## Compare lives of tasks, MCP over HTTP, latency and throughput with the Lua backend; BENCH_QUICK=1 measures less
	$(bench) throughput $(bench_folder)
	$(bench) lives $(bench_folder)
	$(bench) mcp $(bench_folder)
	$(bench) placement $(bench_folder)

bench-checkpoints: build ## Compare the savers of checkpoints of this project, adk-graph and lc-langgraph
	$(bench) checkpoints $(bench_folder)

bench-instructions: build ## Count the server's instructions per command, with valgrind
	$(bench) instructions $(bench_folder)

bench-growth: build ## Measure memory per task, a day of churn, and time per command with up to a million tasks
	$(bench) growth $(bench_folder)

bench-planning: build ## Measure what tasks take by the size of their records: memory, processor, time to restart, network
	$(bench) planning $(bench_folder)

bench-waiting: build ## Measure what waiting and the near cache cost: memory, time to wake up or cancel, requests while idle
	$(bench) waiting $(bench_folder)
	$(bench) wait-command $(bench_folder)

bench-micro: prerequisites ## Time only the record envelope and the argument grammar
	cargo bench --locked --package pmcptask-bench

prerequisites:
	@scripts/prerequisites.sh $(needs)
