"""Run in an environment that holds only the wheel and what it requires: is it whole, and does it embed?

    python use_wheel.py CLONE WHEEL...

CLONE is where the wheels were built. All wheels must hold the same files: those of the clone's package. The last check
starts Python inside the clone, whose own hear_jepa is then imported in place of the wheel's, and must work too.
"""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

import hear_jepa
from hear_jepa.cli import main

clone, *wheels = (Path(path).absolute() for path in sys.argv[1:])
ONLY_IN_A_CLONE = ("__pycache__",)


def package_files(root: Path) -> set[str]:
    """Every file of the package below a clone, through its links."""
    folders = [root / "hear_jepa", root / "hear_jepa" / "train", root / "hear_jepa" / "weights"]
    found = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    return {path.relative_to(root).as_posix() for path in found if not set(path.parts) & set(ONLY_IN_A_CLONE)}


expected = package_files(clone)
for wheel in wheels:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("hear_jepa/")}
    assert held == expected, f"{wheel}: missing {expected - held}, besides {held - expected}"

assert Path(hear_jepa.__file__).is_relative_to(sys.prefix), f"{hear_jepa.__file__} is not the wheel's"
assert importlib.util.find_spec("sklearn") is None, "the environment holds more than serving requires"
model = hear_jepa.load_model()
scenes = hear_jepa.get_scene_embeddings(torch.randn(1, 16000) / 10, model)
assert scenes.shape == (1, model.scene_embedding_size) and scenes.isfinite().all()
assert model.embed(torch.randn(44100) / 10, 44100).shape == (model.scene_embedding_size,)
assert main(["info"]) == 0

inside = "import hear_jepa, hear_jepa.train.loop; hear_jepa.load_model(); print(hear_jepa.__file__)"
ran = subprocess.run([sys.executable, "-c", inside], cwd=clone, check=True, capture_output=True, text=True)
assert Path(ran.stdout.strip()).is_relative_to(clone), ran.stdout
