"""`python -m swsl` is the `swsl` command."""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

_CHECKOUT = str(Path(__file__).parents[1])

# In a checkout Python would run its sources, which have no compiled runner, in place of the package that is installed.
if sys.path[0] == _CHECKOUT and PathFinder.find_spec("swsl", sys.path[1:]):
    del sys.path[0]
    for name in [name for name in sys.modules if name.partition(".")[0] == "swsl"]:
        del sys.modules[name]

from swsl.cli.main import main  # noqa: E402

sys.exit(main())
