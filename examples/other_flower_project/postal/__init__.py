"""Post offices that learn to read digits together: a Flower app whose methods come from ``strategies``."""
