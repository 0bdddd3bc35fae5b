"""Solvers of logistic regression."""
