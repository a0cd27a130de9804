"""The `spqt` command: `main` parses and reports errors, every other file is one command."""
