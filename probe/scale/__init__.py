"""Grids on many machines with Ray, and estimates of the cost of a grid."""
