"""Records of runs: reading, writing, checking and comparing them."""
