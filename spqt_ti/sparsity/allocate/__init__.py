"""Budgets per layer, measured on a model and shared out by `spqt_ti/allocation`: static pruning, dynamic sparsity."""
