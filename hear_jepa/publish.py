"""A folder that the Hugging Face Hub takes as a model: weights, card with metadata, licence."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from hear_jepa.disk import atomic_path
from hear_jepa.errors import OptionError
from hear_jepa.hub import WEIGHTS
from hear_jepa.model.checkpoint import Checkpoint, describe, load_checkpoint, save_checkpoint
from hear_jepa.model.front_end import FrontEndConfig

CARD, LICENCE = "README.md", "LICENSE"
KNOWN_LICENCES = (  # the Hub's names of those that are likely here; another is "other"
    ["mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "unlicense"]
    + ["cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"]
)
TAGS = ["audio", "audio-embeddings", "feature-extraction", "jepa", "hear", "hear-jepa"]


def publish(
    checkpoint: str | Path,
    out: str | Path,
    licence: str = "",
    licence_text: str | Path | None = None,
    card: str | Path | None = None,
    repository: str = "OWNER/NAME",
) -> Path:
    """Write the folder `out`, whole or not at all, and return it.

    checkpoint: a weights file of this package; licence: of the weights, where the file does not say; licence_text: a
    file with its text; card: a Markdown file that follows what the weights file tells; repository: where the folder
    will be. Raises OptionError where `out` exists or no licence is known, CheckpointError for what is no checkpoint.
    """
    out = Path(out)
    if repository.count("/") != 1:
        raise OptionError(f"--repository is {repository!r}: it must be OWNER/NAME")
    if out.exists():
        raise OptionError(f"{out} exists already: choose another folder")
    loaded = load_checkpoint(checkpoint)
    if licence and loaded.licence not in ("unknown", licence):
        raise OptionError(f"the weights in {checkpoint} are under {loaded.licence!r}, not {licence!r}")
    if not licence and loaded.licence == "unknown":
        raise OptionError(f"{checkpoint} does not say under which licence its weights are: give --licence")
    licence = licence or loaded.licence
    with atomic_path(out) as folder:
        folder.mkdir()
        weights = folder / WEIGHTS
        if licence == loaded.licence:
            shutil.copyfile(checkpoint, weights)
        else:
            save_checkpoint(weights, replace(loaded, licence=licence), stored_dtype(loaded))
        extra = Path(card).read_text(encoding="utf-8") if card else ""
        (folder / CARD).write_text(card_of(weights, repository, extra), encoding="utf-8")
        text = Path(licence_text).read_text(encoding="utf-8") if licence_text else licence_note(licence)
        (folder / LICENCE).write_text(text, encoding="utf-8")
    return out


def card_of(weights: Path, repository: str, extra: str = "") -> str:
    """The model card: metadata for the Hub (YAML), how to use the file, what it tells of itself, then `extra`."""
    told = describe(weights)
    encoder, front_end, served = told["encoder"], told["front_end"], told["served"]
    whitened = f", or by `whiten=True` {told['whitened_to']} whitened numbers" if told["whitened_to"] else ""
    two = " by each of two windows" if front_end["n_fft_short"] else ""
    column_ms = 1000 * encoder["patch_frames"] * front_end["hop_length"] // front_end["sample_rate"]
    metadata = {**_licence_metadata(told["licence"]), "library_name": "hear-jepa", "pipeline_tag": "feature-extraction"}
    rows = {
        "encoder": f"ViT, {encoder['depth']} blocks of width {encoder['width']}",
        "parameters": f"{told['parameters'] / 1e6:.1f} million",
        "input": f"mono, {front_end['sample_rate']} Hz; {FrontEndConfig(**front_end).bands} mel bands{two}",
        "column": f"{column_ms} ms",
        "served": f"layers {', '.join(map(str, served['layers']))} of the {served['encoder']} encoder",
        "scene": f"{served['pooling']} of columns every {served['scene_hop_ms']} ms{whitened}",
        "licence of the weights": told["licence"],
        "SHA-256": told["sha256"],
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    # JSON values are YAML values
    front_matter = "\n".join(f"{key}: {json.dumps(value)}" for key, value in {**metadata, "tags": TAGS}.items())
    return f"""---
{front_matter}
---

# {repository.rsplit("/", 1)[1]}

Audio embeddings by a Joint-Embedding Predictive Architecture, for the Python package `hear-jepa`.

```python
import hear_jepa                                    # needs huggingface_hub too
model = hear_jepa.load_model("hf:{repository}")
scene = model.embed(waveform, sample_rate)          # one embedding a recording
embeddings, centres_ms = model.embed(waveform, sample_rate, "timestamps")
```

| | |
|---|---|
{table}

{extra.strip()}

<details><summary>provenance</summary>

```json
{json.dumps(told["provenance"], indent=1, ensure_ascii=False)}
```

</details>
"""


def licence_note(licence: str) -> str:
    """What stands in LICENSE where no text was given."""
    return f"The weights in {WEIGHTS} are licensed under: {licence}\n\nText: https://spdx.org/licenses/\n"


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The smallest type that holds the weights, and the whitening, exactly: what they were stored as."""
    whitening = checkpoint.whitening
    tensors = [*checkpoint.weights.values(), *((whitening.mean, whitening.maps) if whitening else ())]
    for dtype in (torch.float16, torch.bfloat16):
        if all(tensor.to(dtype).float().equal(tensor) for tensor in tensors):
            return dtype
    return torch.float32


def _licence_metadata(licence: str) -> dict[str, str]:
    if licence.lower() in KNOWN_LICENCES:
        return {"license": licence.lower()}
    name = re.sub(r"[^a-z0-9.+]+", "-", licence.lower()).strip("-")
    return {"license": "other", "license_name": name, "license_link": LICENCE}
