"""torch.hub entrypoints: ``torch.hub.load("org/swsl", "swsl_resnext50_32x4d", trust_repo=True)``.

``org/swsl`` is a placeholder; README.md has the lines for a fork and a local path.
"""

dependencies = ["torch"]

from swsl.variants import (  # noqa: E402, F401  (torch.hub reads `dependencies` from the top)
    swsl_resnext50_32x4d,
    swsl_resnext101_32x4d,
    swsl_resnext101_32x8d,
    swsl_resnext101_32x16d,
)
