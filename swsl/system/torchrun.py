"""Words under torchrun, whose processes would all say the same."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path


def is_first() -> bool:
    """Whether this is the only process, or the first of all those that torchrun has started."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def handed_over(message: str) -> bool:
    """Leave the error that ends this process to torchrun, which tells it at its end: of a machine's processes that fail, the first
    one's as the cause, and that the others followed.

    Returns:
        False where there is no torchrun.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is None:
        return False
    try:  # in the folder that this start of the machine's processes shares: LOCAL_RANK/error.json is the file
        (Path(file).parents[1] / "told").touch(exist_ok=False)
        when = time.time()
    except FileExistsError:  # torchrun takes the earliest for the cause, by whole seconds
        message, when = "as the root cause, or for it", time.time() + 1
    content = {"message": message, "extraInfo": {"timestamp": str(int(when))}}
    Path(file).write_text(json.dumps({"message": content}), "utf-8")
    return True
