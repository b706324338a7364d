"""The command line: `dsdb start`, `dsdb sql`, `dsdb demo`, and what operators ask of a cluster."""
