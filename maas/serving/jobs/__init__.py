"""Fine-tuning jobs on the cluster: who runs, where, and what comes of it."""
