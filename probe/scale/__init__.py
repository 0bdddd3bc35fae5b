"""Grids on many machines with Ray, and what a grid costs."""
