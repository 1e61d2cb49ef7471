"""``python -m gatelens.cli``."""

import sys

from gatelens.cli import main

sys.exit(main())
