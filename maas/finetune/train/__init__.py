"""The trainer: one loop for supervised tuning, DPO and continued pre-training."""
