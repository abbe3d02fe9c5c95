"""A model as one ONNX file, for ONNX Runtime, OpenVINO, TensorRT and other runtimes.

The graph takes ``images``, float32 N×3×H×W with H×W the model's input size, and gives ``logits`` N×classes and ``embedding``
N×D. What is said about the model is in ``metadata_props``: by the names ``swsl.variant``, ``swsl.architecture``,
``swsl.preprocess``, ``swsl.labels``, ``swsl.license``, ``swsl.weights_sha256``, ``swsl.fingerprint`` and ``swsl.versions`` a JSON text
each. With preprocessing (see onnx_preprocessing.py) ``images`` are uint8 N×H×W×3 of any H and W.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..preprocess import PreprocessSpec
from ..system.files import replacing
from .description import Description, describe
from .golden import TOLERANCES, golden_input, output_error
from .metadata import ModelError
from .onnx_preprocessing import MOST_STEPS, difference, preprocessing_graph, refuse_other_specs, sample_images
from .program import Answers

Run = Callable[[Tensor], list[Tensor]]
"""A graph in a runtime: the images to its outputs."""


@dataclass(frozen=True)
class Agreement:
    """How far a runtime's answers are from PyTorch's.

    Args:
        runtime: its name and version.
        error: of logits and embeddings, as `swsl.formats.golden` defines it.
        largest: difference of a pixel from Pillow's, in steps of 1/255; of a graph with preprocessing.
        mean: difference of the pixels, likewise.
    """

    runtime: str
    error: float
    largest: float | None = None
    mean: float | None = None

    def __str__(self) -> str:
        pixels = ""
        if self.largest is not None:
            pixels = f"; pixels of noise {self.mean:.1e} steps of 1/255 from Pillow's on average, {self.largest:.0f} at most"
        return f"{self.runtime}: relative error {self.error:.1e}{pixels}"


@torch.inference_mode(False)
@torch.no_grad()
def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    spec: PreprocessSpec | None = None,
    labels: Sequence[str] | None = None,
    license: str | None = None,  # noqa: A002
    weights_sha256: str | None = None,
    with_preprocessing: bool = False,
    check: bool = True,
) -> list[Agreement]:
    """Write a model as ONNX, run the file in ONNX Runtime and OpenVINO, whichever are installed, compare it with ``model`` in eager
    mode, and only then give it its name.

    Args:
        model: as `swsl.export_model` takes it. Neither its weights nor its mode are changed.
        path: the file to write, ``.onnx`` by custom.
        spec: the preprocessing; the model's own by default.
        labels: class names, one a class; by default the model's own, or ImageNet's where there are 1,000.
        license: of the weights; the variant's by default, which also binds what was fine-tuned from it.
        weights_sha256: of the file that the weights came from, where that is known.
        with_preprocessing: resize, crop and normalise in the graph, whose input then is uint8 RGB images N×H×W×3 of one size.
        check: False writes a file that nobody has run.

    Returns:
        What was found in each runtime; nothing without ``check``.

    Raises:
        ValueError: a model without classifier, labels that are not one a class, or preprocessing that the graph cannot hold.
        ImportError: onnx or onnxscript is not installed, or neither runtime is.
        ModelError: a runtime does not compute from the file what the model does.
        OSError: the file cannot be written.
    """
    try:
        import onnx.compose
        import onnxscript  # noqa: F401  which torch.onnx needs
    except ImportError as error:
        raise ImportError(
            f"{path}: writing ONNX needs more: pip install onnx onnxscript ({error})"
        ) from error
    found = describe(model, path, spec, labels, license, weights_sha256)
    if with_preprocessing:
        refuse_other_specs(found.spec)
    runtimes = _installed_runtimes() if check else {}
    if check and not runtimes:
        raise ImportError(
            f"{path}: checking it before it gets its name needs a runtime: pip install onnxruntime or openvino; or write it "
            "unchecked with --no-check (check=False)"
        )
    with replacing(path, special=False) as temporary, tempfile.TemporaryDirectory() as folder:
        graph = _network(found, "batch" if with_preprocessing else "images")
        before = None
        if with_preprocessing:
            (opset,) = (used.version for used in graph.opset_import if not used.domain)
            first = preprocessing_graph(found.spec, graph.ir_version, opset)
            before = Path(folder, "preprocessing.onnx")
            onnx.save(first, before)
            graph = onnx.compose.add_prefix(graph, "network/", rename_inputs=False, rename_outputs=False)
            graph = onnx.compose.merge_models(first, graph, io_map=[("batch", "batch")])
        graph.producer_name = "swsl"
        onnx.helper.set_model_props(
            graph, {f"swsl.{name}": json.dumps(value) for name, value in found.fields().items()}
        )
        onnx.save(graph, temporary)
        return [
            _compare(runtime, load, temporary, before, found, os.fsdecode(path))
            for runtime, load in runtimes.items()
        ]


def _network(found: Description, name: str) -> Any:
    """The model as an onnx.ModelProto, whose input is called ``name``."""
    example = torch.zeros(2, 3, *found.spec.input_size)  # of one image the exporter would make a constant
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):  # of what the exporter itself calls
            warnings.filterwarnings("ignore", category=category)
        program = torch.onnx.export(
            Answers(found.model).eval(), (example,), dynamo=True, verbose=False,
            input_names=[name], output_names=["logits", "embedding"], dynamic_shapes=[{0: torch.export.Dim("N")}],
        )  # fmt: skip
    assert program is not None
    graph = program.model_proto
    body = graph.graph
    # The exporter notes lines of code there, with the folders of the machine that it ran on.
    for part in (*body.node, *body.value_info, *body.input, *body.output, *body.initializer, body, graph):
        del part.metadata_props[:]
    return graph


def _installed_runtimes() -> dict[str, Callable[[Path], Run]]:
    runtimes: dict[str, Callable[[Path], Run]] = {}
    with contextlib.suppress(ImportError):
        import onnxruntime

        def load_onnxruntime(path: Path) -> Run:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            return lambda images: [
                torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()})
            ]

        runtimes[f"ONNX Runtime {onnxruntime.__version__}"] = load_onnxruntime
    with contextlib.suppress(ImportError):
        import openvino

        def load_openvino(path: Path) -> Run:
            # Some processors compute in half precision unless told otherwise.
            compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            return lambda images: [
                torch.from_numpy(output.copy()) for output in compiled([images.numpy()]).values()
            ]

        runtimes[f"OpenVINO {openvino.__version__.split('-')[0]}"] = load_openvino
    return runtimes


def _compare(
    runtime: str,
    load: Callable[[Path], Run],
    written: Path,
    before: Path | None,
    found: Description,
    name: str,
) -> Agreement:
    """The file in a runtime against eager PyTorch; its preprocessing, alone in ``before``, against Pillow's."""
    try:
        run = load(written)
        preprocess = load(before) if before else None
        if preprocess is None:
            shapes = [(count, 3, *found.spec.input_size) for count in (1, 3)]
            batches = [(images, images) for images in map(golden_input, shapes)]
        else:
            batches = [(images, preprocess(images)[0]) for images in sample_images()]
        error = 0.0
        for images, batch in batches:
            logits, embedding = run(images)
            error = max(error, output_error(found.model, batch, logits=logits, features=embedding))
    except Exception as problem:  # the runtimes have kinds of their own
        raise ModelError(f"{name}: not written, since {runtime} does not run it: {problem}") from problem
    if not error <= TOLERANCES["float32"]:
        raise ModelError(
            f"{name}: not written, since {runtime}'s answers are {error:.1e} from eager PyTorch's, expected at most "
            f"{TOLERANCES['float32']:.0e}; try another release of torch or of the runtime"
        )
    if preprocess is None:
        return Agreement(runtime, error)
    largest, mean = difference(batches, found.spec)
    if not largest <= MOST_STEPS:
        raise ModelError(
            f"{name}: not written, since the graph's pixels are up to {largest:.0f} steps of 1/255 from Pillow's in {runtime}, "
            f"expected at most {MOST_STEPS}; try another release of it, or leave out the preprocessing"
        )
    return Agreement(runtime, error, largest, mean)
