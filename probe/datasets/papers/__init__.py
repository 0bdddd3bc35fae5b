"""Datasets that need a reader of their own, one file each."""
