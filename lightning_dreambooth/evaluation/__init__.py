"""Evaluation: prompts, encoders, metrics, the score, and the paper's protocol."""
