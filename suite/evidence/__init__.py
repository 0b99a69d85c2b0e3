"""What the tables prove: checking and re-running them, the report, the benchmarks. Never imports torch (`verify` may,
to train again)."""
