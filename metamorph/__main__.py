"""``python -m metamorph``"""

import sys

from metamorph.cli import main

sys.exit(main())
