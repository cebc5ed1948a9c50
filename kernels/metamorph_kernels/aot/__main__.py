"""`python -m metamorph_kernels.aot`."""

import sys

from metamorph_kernels.aot.table import main

if __name__ == "__main__":
    sys.exit(main())
