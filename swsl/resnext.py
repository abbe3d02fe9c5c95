"""ResNeXt, the whole architecture: Xie et al., "Aggregated Residual Transformations for Deep Neural Networks",
CVPR 2017, https://arxiv.org/abs/1611.05431.

Parameter names and shapes are torchvision's, so state dicts go both ways. The stride of a stage sits in its 3x3
convolution ("ResNet v1.5"), as in the published SWSL weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._jit_internal import is_scripting, unused  # torch.jit's, where that is not left out
from torch.utils.checkpoint import checkpoint

EXPANSION = 4  # a bottleneck's output has four times the channels of its stage's base width


class Bottleneck(nn.Module):
    """1x1 reduce, grouped 3x3, 1x1 expand, each with BatchNorm, around a residual connection."""

    def __init__(self, in_channels: int, planes: int, stride: int, groups: int, width_per_group: int) -> None:
        super().__init__()
        width = planes * width_per_group // 64 * groups
        out_channels = planes * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:  # N×in×H×W
        if not is_scripting() and self.grad_checkpointing and torch.is_grad_enabled():
            return self._checkpointed(x)
        return self._residual(x)

    @unused
    def _checkpointed(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # which takes no contexts, and leaves buffers alone the second time
            return checkpoint(self._residual, x, use_reentrant=False)
        contexts = contextlib.nullcontext(), _KeptBuffers(self)  # of the first time and the second
        return checkpoint(self._residual, x, use_reentrant=False, context_fn=lambda: contexts)

    def _residual(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)  # N×out×H/s×W/s
        x = self.relu(self.bn1(self.conv1(x)))  # N×width×H×W
        x = self.relu(self.bn2(self.conv2(x)))  # N×width×H/s×W/s
        x = self.bn3(self.conv3(x))  # N×out×H/s×W/s
        x += shortcut
        return self.relu(x)


class _KeptBuffers:
    """A context that leaves a module's buffers as it found them: a batch that is computed again for the gradients counts once in
    BatchNorm's running statistics."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.before = [buffer.clone() for buffer in self.module.buffers()]

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for buffer, value in zip(self.module.buffers(), self.before, strict=True):
                buffer.copy_(value)


class ResNeXt(nn.Module):
    """A ResNeXt image classifier.

    Args:
        layers: number of bottlenecks in each of the four stages, ``(3, 4, 6, 3)`` for ResNeXt-50.
        groups: number of groups of the 3x3 convolutions (the paper's cardinality C).
        width_per_group: channels of a group in the first stage (the paper's d).
        num_classes: rows of the classifier; 0 builds none, and ``forward`` returns pooled features N×2048.

    Weights start from He et al.'s normal initialisation (fan out) for convolutions, ones and zeros for BatchNorm.

    Raises:
        ValueError: an argument that describes no ResNeXt.
    """

    if TYPE_CHECKING:  # TorchScript would read the annotation
        # On a model that `create_model` has built: the published facts about it, and what timm's functions read of it.
        variant: Any
        pretrained_cfg: dict[str, Any]
        default_cfg: dict[str, Any]
        feature_info: list[dict[str, Any]]

    def __init__(
        self, layers: Sequence[int], groups: int, width_per_group: int, num_classes: int = 1000
    ) -> None:
        super().__init__()
        if len(layers) != 4 or min(layers) < 1:
            raise ValueError(f"layers: expected four positive numbers of blocks, got {tuple(layers)}")
        if groups < 1 or width_per_group < 1:
            raise ValueError(
                f"groups and width_per_group: expected positive numbers, got {groups} and {width_per_group}"
            )
        self.layers = tuple(layers)
        self.groups = groups
        self.width_per_group = width_per_group
        self.num_features = self.head_hidden_size = 512 * EXPANSION
        # The maps of `feature_maps`, as timm's functions ask for them.
        self.feature_info = [
            {"num_chs": 64, "reduction": 2, "module": "relu"},
            *(
                {
                    "num_chs": 32 * 2**stage * EXPANSION,
                    "reduction": 2 ** (stage + 1),
                    "module": f"layer{stage}",
                }
                for stage in (1, 2, 3, 4)
            ),
        ]

        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._stage(64, 64, 1, layers[0])
        self.layer2 = self._stage(256, 128, 2, layers[1])
        self.layer3 = self._stage(512, 256, 2, layers[2])
        self.layer4 = self._stage(1024, 512, 2, layers[3])
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc: nn.Linear | nn.Identity = nn.Identity()
        self.reset_classifier(num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _stage(self, in_channels: int, planes: int, stride: int, blocks: int) -> nn.Sequential:
        first = Bottleneck(in_channels, planes, stride, self.groups, self.width_per_group)
        out_channels = planes * EXPANSION
        return nn.Sequential(
            first,
            *(
                Bottleneck(out_channels, planes, 1, self.groups, self.width_per_group)
                for _ in range(blocks - 1)
            ),
        )

    def forward_features(self, x: Tensor) -> Tensor:
        """Images N×3×H×W (H, W ≥ 32) to the last stage's map N×2048×⌈H/32⌉×⌈W/32⌉."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # N×64×H/4×W/4
        x = self.layer1(x)  # N×256×H/4×W/4
        x = self.layer2(x)  # N×512×H/8×W/8
        x = self.layer3(x)  # N×1024×H/16×W/16
        return self.layer4(x)  # N×2048×H/32×W/32

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """A map N×2048×h×w to logits N×num_classes, or to pooled features N×2048 with ``pre_logits``."""
        x = torch.flatten(self.avgpool(x), 1)  # N×2048
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images N×3×H×W to logits N×num_classes (to pooled features N×2048 where num_classes is 0)."""
        return self.forward_head(self.forward_features(x))

    def feature_maps(self, x: Tensor, stages: Sequence[int] = (0, 1, 2, 3, 4)) -> list[Tensor]:
        """The outputs of the chosen stages, for detection and segmentation: timm's with ``features_only=True``, index by index.

        Args:
            x: images N×3×H×W.
            stages: which stages, each 0 to 4, in the order wanted. 0 is the stem before its pool.

        Returns:
            For stage s a map N×C×H/2^(s+1)×W/2^(s+1): 64, 256, 512, 1024, 2048 channels at strides 2, 4, 8, 16, 32.

        Raises:
            ValueError: a stage outside 0 to 4, or none.
        """
        if not stages or not all(stage in (0, 1, 2, 3, 4) for stage in stages):
            raise ValueError(f"stages: expected some of 0, 1, 2, 3, 4, got {tuple(stages)}")
        _, maps = self._walk(x, stages, max(stages))
        return [maps[stage] for stage in stages]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """timm's method of this name: the maps of `feature_maps` on the way to that of `forward_features`.

        Args:
            x: images N×3×H×W.
            indices: which stages, each 0 to 4, or -5 to -1 from the end; n: the last n; None: all five.
            norm: nothing here, as in timm's ResNets: every map is normalised.
            stop_early: do not compute the stages after the last of ``indices``.
            output_fmt: "NCHW".
            intermediates_only: return the second of the two alone.

        Returns:
            The last stage's map (with ``stop_early`` what the last computed stage hands on), and the chosen maps in the network's order.

        Raises:
            ValueError: a stage that there is not, or none, or another format.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: expected 'NCHW', got {output_fmt!r}")
        given = 5 if indices is None else indices
        taken = range(-given, 0) if isinstance(given, int) else given
        if not taken or not all(-5 <= index < 5 for index in taken):
            raise ValueError(
                f"indices: expected 1 to 5, or some of 0 to 4 (-5 to -1 from the end), got {indices}"
            )
        stages = sorted({index % 5 for index in taken})
        x, maps = self._walk(x, stages, stages[-1] if stop_early else 4)
        found = [maps[stage] for stage in stages]
        return found if intermediates_only else (x, found)

    def _walk(self, x: Tensor, kept: Collection[int], last: int) -> tuple[Tensor, dict[int, Tensor]]:
        """What stage ``last`` hands on, and the maps of the stages that are kept, each 0 to ``last``."""
        x = self.relu(self.bn1(self.conv1(x)))  # N×64×H/2×W/2
        maps = {0: x} if 0 in kept else {}
        x = self.maxpool(x)
        for number, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)[:last], 1):
            x = stage(x)
            if number in kept:
                maps[number] = x
        return x, maps

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the input of each bottleneck for the gradients, and compute the rest once more when they are: less memory, more
        time, the same numbers. BatchNorm counts each batch once."""
        for module in self.modules():
            if isinstance(module, Bottleneck):
                module.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """timm's method of this name: patterns of parameters' names, for learning rates by depth. ``coarse`` has stages as groups, not
        blocks."""
        return {"stem": r"^conv1|bn1|maxpool", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The classifier (`nn.Identity` where there is none), or its name in the model, "fc"."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier with a freshly initialised one of ``num_classes`` rows; 0 removes it.

        Args:
            num_classes: of the new one. Names of the classes before are forgotten.
            global_pool: as timm's; there is "avg" alone, and None keeps it.

        Raises:
            ValueError: not a whole number of 0 or more, or another pool.
        """
        if not isinstance(num_classes, int) or num_classes < 0:
            raise ValueError(f"num_classes: expected a whole number of 0 or more, got {num_classes!r}")
        if global_pool not in (None, "avg"):
            raise ValueError(
                f"global_pool: expected 'avg' or None, got {global_pool!r}; maps before any pooling are "
                "model.forward_features(images)"
            )
        self.num_classes = num_classes
        if config := getattr(self, "pretrained_cfg", None):
            config["num_classes"] = num_classes
            for stale in ("label_names", "label_descriptions"):
                config.pop(stale, None)
        like = self.conv1.weight
        self.fc = (
            nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            if num_classes
            else nn.Identity()
        )
