"""`python -m spqt_ti` is the command `spqt`."""

import sys

from spqt_ti.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
