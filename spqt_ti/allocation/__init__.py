"""Budget problems and their solutions: how much of each layer (or site) may go, in NumPy; knows no models."""
