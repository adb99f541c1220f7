"""What the tests share: small random encoders, and the real audio of tests/tasks."""

from pathlib import Path

import pytest
import soundfile
import torch

from hear_jepa import Embedder
from hear_jepa.model.checkpoint import Checkpoint, save_checkpoint
from hear_jepa.model.vit import ViT, ViTConfig

TASKS = Path(__file__).parent / "tasks"
SMALL = ViTConfig(width=96, depth=3, heads=3)


def random_checkpoint(config: ViTConfig = SMALL, seed: int = 0, **parts) -> Checkpoint:
    """Weights as an initialisation gives them, but biases too are random: a forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    weights = ViT(config).state_dict()
    for name, tensor in weights.items():
        if name.endswith("bias") or name == "class_token":
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return Checkpoint(config, weights, **parts)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same numbers, alone and among others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """A random encoder of width 96 and depth 3."""
    return random_checkpoint()


@pytest.fixture(scope="session")
def weights(tmp_path_factory, checkpoint) -> str:
    """The path of a file of it, to read only."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_checkpoint(path, checkpoint)
    return str(path)


@pytest.fixture(scope="session")
def model(checkpoint) -> Embedder:
    """It, served every 40 ms."""
    return Embedder(checkpoint)


@pytest.fixture(scope="session")
def recordings() -> list[torch.Tensor]:
    """One real clip of each task, 1-D, 16 kHz."""
    clips = []
    for task in sorted(TASKS.iterdir()):
        path = sorted(task.glob("16000/*/*.*"))[0]
        audio, rate = soundfile.read(path, dtype="float32")
        assert rate == 16000
        clips.append(torch.from_numpy(audio))
    return clips


@pytest.fixture(scope="session")
def minute(recordings) -> torch.Tensor:
    """60 s of real sound: the recordings, over and over."""
    sound = torch.cat(recordings)
    return sound.repeat(-(-960000 // len(sound)))[:960000]


@pytest.fixture(scope="session")
def sixteen_clips(tmp_path_factory) -> Path:
    """A folder with sixteen of the shipped clips, to train on."""
    folder = tmp_path_factory.mktemp("clips")
    for clip in sorted((TASKS / "sound_source-v1-small" / "16000" / "fold00").glob("*"))[:16]:
        (folder / clip.name).write_bytes(clip.read_bytes())
    return folder
