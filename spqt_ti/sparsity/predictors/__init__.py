"""Predictors of neurons without training: a truncation-aware SVD of gate and a calibrated bias (arXiv 2603.14110)."""
