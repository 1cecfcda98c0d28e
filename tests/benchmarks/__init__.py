"""What ingestd's speed and memory come to, against what a user would do instead: ``python -m tests.benchmarks``."""
