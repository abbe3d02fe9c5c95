"""The scripts that complete the command line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import swsl
from swsl.cli.completion import SHELLS
from swsl.cli.main import main

# What is typed, and the values that it may become where there are a folder "run" and a file "run.pt".
VALUES = (
    (("classify", "--model", "swsl_resnext5"), {"swsl_resnext50_32x4d"}),
    (("classify", "--device", "c"), {"cpu", "cuda"}),
    (("classify", "--outputs", "l"), {"logits"}),
    (("classify", "--outputs", "predictions,e"), {"predictions,embedding", "predictions,embedding,logits"}),
    (("export", "swsl_resnext50"), {"swsl_resnext50_32x4d"}),
    (("export", "r"), {"run", "run.pt"}),
    (("finetune", "--amp", "b"), {"bf16"}),
    (("validate", "--predictions", "run"), {"run", "run.pt"}),
    (("finetune", "--output", "run"), {"run"}),
)


@pytest.fixture
def script(capsys: pytest.CaptureFixture, request: pytest.FixtureRequest) -> str:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", request.param])
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize(("script", "shell"), [(shell, shell) for shell in SHELLS], indirect=["script"])
def test_every_shell_gets_every_command(script: str, shell: str, tmp_path: Path) -> None:
    for word in ("classify", "finetune", "exif-orientation", "predictions", "bfloat16", *swsl.VARIANTS):
        assert word in script
    if shutil.which(shell):
        path = tmp_path / "script"
        path.write_text(script)
        done = subprocess.run([shell, "-n", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash_completes(script: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run.pt").touch()

    def completed(*words: str) -> set[str]:
        line = f'COMP_WORDS=(swsl {" ".join(words)} ""); COMP_CWORD={len(words)}; COMP_WORDS[$COMP_CWORD]="{words[-1]}"; '
        program = f'{script}\n{line}_shtab_swsl; printf "%s\\n" "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, cwd=tmp_path)
        return set(done.stdout.split())

    assert completed("fin") == {"finetune"}
    assert completed("classify", "--ex") == {"--exif-orientation"}
    assert completed("--print-completion", "f") == {"fish"}
    for words, expected in VALUES:
        assert completed(*words) == expected, words


@pytest.mark.skipif(not shutil.which("fish"), reason="there is no fish here")
@pytest.mark.parametrize("script", ["fish"], indirect=True)
def test_fish_completes(script: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run.pt").touch()
    (tmp_path / "script").write_text(script)
    for words, expected in VALUES:
        program = ["fish", "--no-config", "-c", f"source script; complete -C 'swsl {' '.join(words)}'"]
        done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path)
        assert {line.split("\t")[0].rstrip("/") for line in done.stdout.splitlines()} == expected, words


def test_without_shtab_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    assert "--print-completion: needs shtab: pip install shtab" in capsys.readouterr().err
