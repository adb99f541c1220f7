"""Families that are told from others, and why they are not served: an error by name, in place of wrong embeddings."""

from collections.abc import Collection

WHY = {
    "Audio-JEPA (Tuncay et al.)": (
        ("encoder.pos_embed", "encoder.blocks.0.attn.Wqkv.weight"),
        "its frames are 19.53125 ms apart, so that timestamps in whole milliseconds would drift, "
        "and it takes mean and peak of each clip off, so that no sound embeds apart from the rest of its clip",
    ),
    "EAT": (
        ("modality_encoders.IMAGE.local_encoder.proj.weight",),
        "its blocks normalise after the residual, and its filter banks take the mean of each clip off",
    ),
}


def reason(names: Collection[str]) -> str | None:
    """Why a file of these names is not served, or None where it is of no family listed here."""
    bare = {name.removeprefix("model.") for name in names}
    for family, (needed, why) in WHY.items():
        if all(name in bare for name in needed):
            return f"it is of {family}, which is not served: {why}"
    return None
