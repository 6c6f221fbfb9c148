"""Weights in the memory of running processes: which mapped files are checkpoints, what of them went bad, and putting it right."""
