"""Claims about every shipped checkpoint, which no refactoring may change unseen:

* the embeddings of shipped sound are those that were written down when it shipped, to 1e-4;
* they do not tell where in a window a column lies: its place explains at most 2 % of their variance;
* a second of sound embeds nearly alike wherever the windows are cut around it.

After a change of the weights, not of the code: python tests/test_golden.py writes the numbers again.
"""

import json
from pathlib import Path

import pytest
import soundfile
import torch

import hear_jepa
from hear_jepa.api import shipped_models
from hear_jepa.evaluation.position import place_consistency, position_share

HERE = Path(__file__).parent
TASKS, GOLDEN = HERE / "tasks", HERE / "golden.json"
CLIPS = (
    "percussion_events-v1-small/16000/test/test00.flac",
    "percussion_kind-v1-small/16000/fold01/ForzeeStereo_HiHatClosed_0.flac",
    "spoken_vowel-v1-small/16000/train/it-ba.flac",
)
EVERY = 97  # of the numbers of an embedding, which are kept


def read(name: str | Path) -> torch.Tensor:
    """[1, samples]."""
    return torch.from_numpy(soundfile.read(TASKS / name, dtype="float32")[0])[None]


def embedded(name: str) -> dict[str, dict[str, list[float]]]:
    """Some numbers of the scene and of the last timestamp of every clip, by the model of this name."""
    model = hear_jepa.load_model(name)
    found = {}
    for clip in CLIPS:
        timestamps, _ = hear_jepa.get_timestamp_embeddings(read(clip), model)
        scene = hear_jepa.get_scene_embeddings(read(clip), model)[0]
        parts = {"scene": scene, "last timestamp": timestamps[0, -1]}
        found[clip] = {part: values[::EVERY].double().tolist() for part, values in parts.items()}
    return found


@pytest.mark.parametrize("name", shipped_models())
def test_embeddings_are_those_that_shipped(name):
    golden, found = json.loads(GOLDEN.read_text())[name], embedded(name)
    assert golden.keys() == found.keys()
    for clip, parts in golden.items():
        for part, values in parts.items():
            expected, now = torch.tensor(values), torch.tensor(found[clip][part])
            torch.testing.assert_close(now, expected, rtol=0, atol=1e-4, msg=lambda m, c=clip, p=part: f"{c}, {p}: {m}")


@pytest.mark.parametrize("name", shipped_models())
def test_embeddings_do_not_tell_their_place_in_the_window(name):
    model = hear_jepa.load_model(name)
    joined = torch.cat([read(path)[0] for path in sorted((TASKS / "sound_source-v1-small").glob("16000/*/*.flac"))])
    assert position_share(model, [joined], 200) <= 0.02
    assert place_consistency(model, joined[: 45 * 16000], start_s=30.0) >= 0.8


if __name__ == "__main__":
    numbers = {name: embedded(name) for name in shipped_models()}
    GOLDEN.write_text(json.dumps(numbers).replace('"scene"', '\n"scene"').replace('"last', '\n"last') + "\n")
