"""Fine-tuning: data checks, recipes, the trainer, adapters, the parity receipt."""
