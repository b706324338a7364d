"""The sides of a comparison: each starts its servers, loads what a workload reads, and says how clients reach it.

dsdb_cluster, postgres, etcd     servers on loopback, on free ports, below a scratch directory, ended by their own ids
duckdb_file                      no server: a file in each client's process
port                             what all of them offer
"""
