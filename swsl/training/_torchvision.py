"""torchvision, whichever build of torch it finds."""

from __future__ import annotations

from types import ModuleType

import torch

_MISSING_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_schemas: torch.library.Library | None = None  # the schemas live as long as this object


def import_torchvision() -> ModuleType:
    """The torchvision package, with its Python part (transforms, models, feature extraction) in working order.

    PyPI's torchvision is linked to CUDA libraries. Beside a CPU build of torch its compiled operators cannot be loaded,
    and importing it ends in "operator torchvision::nms does not exist". Nothing here calls those operators; once their
    two schemas are defined the import succeeds.

    Raises:
        ImportError: torchvision is not installed, or not the one for this torch.
    """
    global _schemas
    try:
        import torchvision
    except ImportError as error:
        raise ImportError(f"this needs torchvision: pip install torchvision ({error})") from error
    except RuntimeError as error:
        if "operator torchvision::" not in str(error) or _schemas is not None:
            raise ImportError(
                f"torchvision does not fit torch {torch.__version__} ({error}): install both together"
            ) from error
        _schemas = torch.library.Library("torchvision", "DEF")
        for schema in _MISSING_OPERATORS:
            _schemas.define(schema)
        return import_torchvision()
    return torchvision
