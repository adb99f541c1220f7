"""The examples do what they say, and stay short.

* A recording's nearest sound is itself, and sounds of its kind come before others.
* A classifier trained on a few labelled clips labels others of the same kinds; an unreadable one is named, not fatal.
"""

import importlib.util
from pathlib import Path

import numpy
import pytest
import soundfile

from hear_jepa.model.checkpoint import save_checkpoint

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name):
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def weights(tmp_path, checkpoint):
    save_checkpoint(tmp_path / "small.safetensors", checkpoint)
    return str(tmp_path / "small.safetensors")


@pytest.fixture
def sounds(tmp_path):
    """Six low hums and six hisses, each with its own level and length."""
    generator, folder = numpy.random.default_rng(0), tmp_path / "sounds"
    folder.mkdir()
    for number in range(6):
        n_samples = 8000 + 1500 * number
        hum = numpy.sin(2 * numpy.pi * (150 + 10 * number) * numpy.arange(n_samples) / 16000)
        soundfile.write(folder / f"hum{number}.wav", 0.3 * hum, 16000)
        soundfile.write(folder / f"hiss{number}.wav", 0.05 * (number + 1) * generator.normal(size=n_samples), 16000)
    return folder


def test_similar_sounds(sounds, weights, capsys):
    arguments = [str(sounds / "hum2.wav"), str(sounds), "--top", "6", "--model", weights]
    for _ in range(2):  # embedded, then found embedded
        assert load("similar_sounds").main(arguments) == 0
        printed = [Path(line.split()[1]).name for line in capsys.readouterr().out.splitlines() if ".wav" in line]
        assert printed[0] == "hum2.wav" and all(name.startswith("hum") for name in printed)


def test_own_labels(sounds, weights, tmp_path, capsys):
    pytest.importorskip("sklearn")
    (sounds / "broken.wav").write_bytes(b"nothing")
    rows = [f"sounds/{kind}{number}.wav,{kind}" for number in range(4) for kind in ("hum", "hiss")]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows, "sounds/gone.wav,hum"]), encoding="utf-8")
    new = [str(sounds / "*[45].wav"), str(sounds / "broken.wav")]
    assert load("own_labels").main([str(tmp_path / "labels.csv"), *new, "--model", weights]) == 0
    printed = capsys.readouterr()
    answers = dict(line.split(",", 1) for line in printed.out.splitlines())
    names = {Path(path).name: label for path, label in answers.items()}
    expected = {f"{kind}{number}.wav": kind for number in (4, 5) for kind in ("hum", "hiss")}
    assert expected.items() <= names.items() and "read" in names["broken.wav"]
    assert "gone.wav" in printed.err and "100.0%" in printed.err


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
