"""`python -m metamorph`"""

import sys

from metamorph.cli.command import main

sys.exit(main())
