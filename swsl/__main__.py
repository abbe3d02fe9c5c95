"""`python -m swsl` is the `swsl` command."""

import sys

from .cli.main import main

sys.exit(main())
