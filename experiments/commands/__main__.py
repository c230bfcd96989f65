"""``python -m experiments.commands`` starts what ``mcr2`` starts."""

import sys

from experiments.commands.cli import main

sys.exit(main())
