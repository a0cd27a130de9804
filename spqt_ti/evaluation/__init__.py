"""What sparsity costs in quality."""
