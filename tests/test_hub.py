"""torch.hub and `import swsl`, as a program with nothing but torch installed meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import NAMES, ROOT, subprocess_environment

# torch.hub loads hubconf.py with the repository on sys.path, where other repositories have left modules of their own.
TORCH_ALONE = """
import json, sys, types

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"PIL", "torchvision", "timm", "numpy", "safetensors", "huggingface_hub", "tqdm", "sklearn", "pybind11"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
for alien in ("models", "utils", "models.resnet", "utils.general"):
    sys.modules[alien] = types.ModuleType(alien)
import torch
"""


def run_with_torch_alone(code: str, folder: Path) -> object:
    environment = subprocess_environment()
    del environment["PYTHONPATH"]  # torch.hub itself must find the package
    result = subprocess.run(
        [sys.executable, "-c", TORCH_ALONE + code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_local_repository(tmp_path: Path, weights50: Path, model50: torch.nn.Module) -> None:
    found = run_with_torch_alone(
        f"""
model = torch.hub.load({str(ROOT)!r}, "swsl_resnext50_32x4d", source="local", weights={str(weights50)!r}).eval()
with torch.inference_mode():
    logits = model(torch.ones(1, 3, 64, 64))[0].tolist()
import swsl
config = {{key: model.pretrained_cfg[key] for key in ("input_size", "interpolation", "crop_pct", "mean", "std")}}
print(json.dumps([swsl.__file__, model.variant.name, config, logits]))
""",
        tmp_path,
    )
    with torch.inference_mode():
        expected = model50(torch.ones(1, 3, 64, 64))[0]
    assert found[:2] == [str(ROOT / "swsl" / "__init__.py"), "swsl_resnext50_32x4d"]
    assert found[2] == {  # what a script of timm's looks for, and needs no timm to find
        "input_size": [3, 224, 224],
        "interpolation": "bilinear",
        "crop_pct": 0.875,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert torch.allclose(torch.tensor(found[3]), expected, rtol=1e-4, atol=1e-5)


def test_published_repository(tmp_path: Path, torch_home: Path) -> None:
    """As torch.hub finds org/swsl once it has fetched it: in its own folder, under a name with the branch."""
    repository = torch_home / "hub" / "org_swsl_main"
    repository.mkdir(parents=True)
    for part in ("hubconf.py", "swsl"):
        (repository / part).symlink_to(ROOT / part)
    names, text, parameters = run_with_torch_alone(
        """
names = torch.hub.list("org/swsl:main", trust_repo=True)
text = torch.hub.help("org/swsl:main", "swsl_resnext101_32x16d", trust_repo=True)
model = torch.hub.load("org/swsl:main", "swsl_resnext101_32x4d", trust_repo=True, pretrained=False)
print(json.dumps([names, text, sum(parameter.numel() for parameter in model.parameters())]))
""",
        tmp_path,
    )
    assert sorted(names) == sorted(NAMES)
    assert "194,026,792 parameters" in text
    assert "saved wrongly" in text
    assert parameters == 44_177_704


@pytest.mark.parametrize("module", ["torchvision", "PIL", "timm", "urllib.request", "tempfile"])
def test_import_stays_light(module: str) -> None:
    """`import swsl` imports nothing heavy that `import torch` has not."""
    code = f"import sys, torch; before = {module!r} in sys.modules; import swsl; print(before, {module!r} in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=subprocess_environment(), check=True
    ).stdout.split()
    assert output[0] == output[1]


def test_numpy_is_not_needed(tmp_path: Path, photo: Path) -> None:
    code = TORCH_ALONE.replace('"PIL", ', "") + (
        f"sys.path.insert(0, {str(ROOT)!r})\nimport swsl\n"
        f"print(json.dumps(swsl.preprocess({str(photo)!r}).sum().item()))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert output.returncode == 0, output.stderr
    import swsl

    assert json.loads(output.stdout) == pytest.approx(swsl.preprocess(photo).sum().item(), rel=1e-6)


def test_a_missing_numpy_is_no_warning(tmp_path: Path) -> None:
    """torch alone warns of it on import, which would be the first line that a new user of `swsl demo` sees."""
    code = TORCH_ALONE.removesuffix("import torch\n") + (
        f"sys.path.insert(0, {str(ROOT)!r})\nimport swsl\nprint('numpy' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (output.stdout, output.stderr) == ("False\n", "")


def test_missing_pillow_says_what_to_install(tmp_path: Path, photo: Path) -> None:
    code = TORCH_ALONE + f"sys.path.insert(0, {str(ROOT)!r})\nimport swsl\nswsl.preprocess({str(photo)!r})"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "ImportError: images need Pillow: pip install pillow" in output.stderr
