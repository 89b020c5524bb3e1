"""The paper's experiments: regimes, runs, tables and pictures."""
