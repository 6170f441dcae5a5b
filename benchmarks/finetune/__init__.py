"""Training next to its peers; see ``python -m benchmarks.finetune --help``."""
