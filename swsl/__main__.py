"""`python -m swsl` is the `swsl` command."""

import sys

from .cli import main

sys.exit(main())
