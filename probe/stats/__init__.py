"""Metrics, outcomes of test images, confidence intervals and paired tests. Knows nothing of models and files."""
