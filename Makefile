# Everything below needs only Python 3.11+ and make: the virtual environment is made here.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint sim bench crash fuzz-wire lag clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/dsdb demo

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

# make bench [PEERS=etcd,postgres,duckdb] [WORK=read,insert,…] [CLIENTS=1,16,64] [SECONDS=3] [TURNS=3] [SCALE=1]; see docs/benchmarks.md
bench: $(VENV)/.installed-bench
	$(BIN)/python -m bench --install $(if $(PEERS),--peers $(PEERS)) $(if $(WORK),--work $(WORK)) $(if $(CLIENTS),--clients $(CLIENTS)) \
		$(if $(SECONDS),--seconds $(SECONDS)) $(if $(TURNS),--turns $(TURNS)) $(if $(SCALE),--scale $(SCALE))

# make lag [SECONDS=60] [SCALE=1]
lag: $(STAMP)
	$(BIN)/python -m bench.lag $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SCALE),--scale $(SCALE))

$(VENV)/.installed-bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

MINUTES ?= 5
crash: $(STAMP)
	$(BIN)/python -m tests.faults.crash_loop --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

clean:
	rm -rf $(VENV) build *.egg-info
