"""Linear probes: protocols, few-shot draws, the sweep over C, solvers, and the fit under a protocol."""
