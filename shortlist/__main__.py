"""Entry point of `python -m shortlist`, which is the same as `shortlist`."""

import sys

from shortlist.cli import main

sys.exit(main())
