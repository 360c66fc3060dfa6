"""Callbacks of the Trainer: monitoring, signals, samples, validation and checkpointing."""
