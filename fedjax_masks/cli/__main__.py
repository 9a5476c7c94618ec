"""The program ``python -m fedjax_masks.cli``."""

import sys

from fedjax_masks.cli.launcher import main

sys.exit(main())
