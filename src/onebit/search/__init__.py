"""Which bit-width each matrix of a model gets: the space of maps, how they are measured, strategies, results."""
