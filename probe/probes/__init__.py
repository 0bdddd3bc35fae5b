"""Probes: protocols as data, the search over C, the solvers, and the fit that ties them together."""
