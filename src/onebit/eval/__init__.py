"""How good a model is, and whether two forms of it are the same model: perplexity, verify, the result record."""
