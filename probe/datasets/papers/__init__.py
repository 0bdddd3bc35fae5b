"""Datasets that need their own reader, one module each."""
