"""Benchmarks: `python -m bench` runs the same workloads on dsdb and on its peers, in turns, in one run.

    __main__ ─▶ run ─▶ sides/*            start servers, load rows, name contenders
                 │
                 ├──▶ workloads ▸ turns ▸ clients     A B A B …: one slice of one contender at a time
                 ├──▶ starting                        start to first answer, import, idle
                 └──▶ results ▸ report                JSON lines, tables
    lag                                               `make lag`: does the event loop keep up under load?
    failover, hot_split                               how long writes pause at a kill; does a hot range spread over the nodes?

docs/benchmarks.md says how to read the figures.
"""
