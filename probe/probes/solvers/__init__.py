"""Solvers for logistic regression: scikit-learn's and a faster one of this package."""
