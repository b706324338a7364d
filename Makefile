# Everything below needs only Python 3.11+ and make: the virtual environment is made here.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint model sim sim-many mutants differential bench crash chaos failover ranges ingest bench-tpch fuzz fuzz-wire lag clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/dsdb demo

# make test [WORKERS=2]: with 0 all in one process, as `pytest` does
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses $(or $(WORKERS),2)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

# make bench [PEERS=etcd,postgres,galera,…] [WORK=read,insert,bank,…] [CLIENTS=1,16,64] [SECONDS=3] [TURNS=3] [SCALE=1]; see docs/benchmarks.md
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

# make chaos [MINUTES=5] [SEED=1] [NODES=3] [NETWORK=proxy] [ELASTIC=1] [TLS=1] [PICTURE=chaos.svg]: real processes, transactions and
# faults; see docs/testing.md
chaos: $(STAMP)
	$(BIN)/python -m tests.faults.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(NODES),--nodes $(NODES)) \
		$(if $(NETWORK),--network $(NETWORK)) $(if $(ELASTIC),--elastic) $(if $(TLS),--tls) $(if $(PICTURE),--picture $(PICTURE))

# make ranges [RANGES=10000]: what very many ranges cost, idle, in use, and after a restart
ranges: $(STAMP)
	$(BIN)/python -m bench.ranges $(if $(RANGES),--ranges $(RANGES))

# make ingest [ROWS=6001215] [SOURCE=arrow] [SHUFFLED=1] [ROUNDS=3] [PEERS=duckdb,postgres|none] [MEMORY_LIMIT=400]: many rows into a
# table, durable on three nodes; with a limit of memory a set of three times that must get in
ingest: $(VENV)/.installed-bench
	$(BIN)/python -m bench.ingest $(if $(ROWS),--rows $(ROWS)) $(if $(SOURCE),--source $(SOURCE)) $(if $(SHUFFLED),--shuffled) \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(PEERS),--peers $(PEERS)) $(if $(MEMORY_LIMIT),--memory-limit $(MEMORY_LIMIT))

# make bench-tpch [SF=1] [ROUNDS=3] [QUERIES=1,5,18] [NODES=3] [PEERS=duckdb,postgres]: the 22 queries, checked, beside others
bench-tpch: $(VENV)/.installed-bench
	$(BIN)/python -m bench.tpch --sf $(or $(SF),1) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(QUERIES),--queries $(QUERIES)) \
		$(if $(NODES),--nodes $(NODES)) $(if $(PEERS),--peers $(PEERS))

# make failover [KILLS=20]: how long writes pause when a node is killed
failover: $(STAMP)
	$(BIN)/python -m bench.failover $(if $(KILLS),--kills $(KILLS))

# make sim [SEED=1] [SECONDS=20]: one seed of each simulator; see docs/testing.md
sim: $(STAMP)
	$(BIN)/python -m tests.sim.raft_sim --seed $(or $(SEED),1) $(if $(SECONDS),--seconds $(SECONDS))
	$(BIN)/python -m tests.sim.protocol_sim --seed $(or $(SEED),1) $(if $(SECONDS),--seconds $(SECONDS))
	$(BIN)/python -m tests.sim.node_sim --seed $(or $(SEED),1) $(if $(SECONDS),--seconds $(SECONDS))

# make sim-many [MINUTES=5] [SEED=1]: seed after seed, for so long with each simulator
sim-many: $(STAMP)
	$(BIN)/python -m tests.sim.raft_sim --search $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.sim.protocol_sim --search $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.sim.protocol_sim --search $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED)) --elastic
	$(BIN)/python -m tests.sim.protocol_sim --search $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED)) --ingests
	$(BIN)/python -m tests.sim.protocol_sim --search $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED)) --elastic --ingests
	$(BIN)/python -m tests.sim.node_sim --search $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED))

# make model [HISTORIES=12000 | MINUTES=5] [RULES=each]: random histories against the rules of transactions; see tests/model/README.md
model: $(STAMP)
	$(BIN)/python -m tests.model $(RULES) \
		$(if $(HISTORIES),--histories $(HISTORIES),$(if $(filter command environment,$(origin MINUTES)),--minutes $(MINUTES)))

# make differential [MINUTES=5] [SEED=1]: generated queries on dsdb and on PostgreSQL; see docs/testing.md
differential: $(STAMP)
	$(BIN)/python -m tests.differential.comparing --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED))

# make mutants [NAMES="tombstones low water"]: planted faults that the simulators must find; see docs/testing.md
mutants: $(STAMP)
	$(BIN)/python -m tests.sim.mutants $(NAMES)

# make fuzz [MINUTES=5] [SEED=1]: generated schemas and queries, on three nodes, in all physical conditions; see docs/testing.md
fuzz: $(STAMP)
	$(BIN)/python -m tests.differential.fuzz --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED))

fuzz-wire: $(STAMP)
	$(BIN)/python -m tests.wire.fuzz $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

clean:
	rm -rf $(VENV) build *.egg-info
