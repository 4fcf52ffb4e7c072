"""Inference with what a job made: one answer, a conversation in the terminal, or batches over a dataset."""
