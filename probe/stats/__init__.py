"""Metrics, outcomes of test images, confidence intervals and paired tests. Nothing here knows about models or files."""
