"""The parity receipt: proof that a tuned model answers the same wherever it runs."""
