"""Splits of datasets: published ones, recipes of papers, and held-out images."""
