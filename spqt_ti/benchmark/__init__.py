"""Measurements that the command line and the README's tables share."""
