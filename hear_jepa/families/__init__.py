"""Public families of foreign checkpoints, one file a family.

A family is a module with `TITLE`, `ORIGIN`, `LICENCE` (of its weights, "unknown" where nobody says), and two functions:

* `recognise(names, file_name)`: whether tensors of these names are the family's. Names are enough, so that
  `load_model` can tell what a foreign file is without reading a tensor;
* `adapt(state, source, asked)`: the tensors by our names, front end, grid, class token, positions, what is served.
  What a file cannot tell is asked for, never guessed.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from hear_jepa.disk import file_sha256
from hear_jepa.errors import CheckpointError, OptionError
from hear_jepa.families import atst, dasheng, jepa, m2d, matpac, pupujepa, unserved
from hear_jepa.families.adapted import Adapted, Asked
from hear_jepa.families.reading import named_after, read_names, read_state, without_prefix
from hear_jepa.model.checkpoint import Checkpoint, ServedConfig, check_config, check_shapes

FAMILIES: dict[str, ModuleType] = {
    "jepa": jepa,
    "m2d": m2d,
    "matpac": matpac,
    "dasheng": dasheng,
    "atst": atst,
    "pupujepa": pupujepa,
}


def convert(
    source: str | Path, family: str | None = None, licence: str | None = None, asked: Asked | None = None
) -> tuple[Checkpoint, Adapted]:
    """Read a foreign checkpoint; return ours, and what the family made of the file.

    family: one of FAMILIES, found by the names of the tensors where it is not given; licence: of the original weights,
    where the family does not know it; asked: what the file does not tell.
    Raises `CheckpointError` for a file that cannot be used, `OptionError` for options that are needed or do not fit.
    """
    source = Path(source)
    state = without_prefix(read_state(source))
    name = family or find_family(state, named_after(source))
    if name is None:
        why = unserved.reason(state)
        if why:
            raise CheckpointError(f"{source}: {why}")
        some = ", ".join(sorted(state)[:3])
        raise CheckpointError(
            f"{source} is of no known family ({', '.join(FAMILIES)}): it holds {some}, …. "
            "Where it is one of them under other names, say which with --family"
        )
    if name not in FAMILIES:
        raise OptionError(f"there is no family {name!r}: known are {', '.join(FAMILIES)}")
    module = FAMILIES[name]
    adapted = module.adapt(state, source, asked or Asked())
    checkpoint = Checkpoint(
        encoder=adapted.encoder,
        weights=adapted.weights,
        front_end=adapted.front_end,
        served=ServedConfig(encoder=adapted.served_encoder),
        provenance={
            "family": name,
            "origin": module.ORIGIN,
            "converted_from": named_after(source),
            "source_sha256": file_sha256(source),
        },
        licence=licence or module.LICENCE,
    )
    rate = checkpoint.grid.sample_rate
    if asked and asked.sample_rate not in (None, rate):
        raise OptionError(f"--sample-rate is {asked.sample_rate}: {module.TITLE} hears {rate} Hz")
    served = replace(checkpoint.served, scene_hop_ms=checkpoint.grid.column_ms)
    checkpoint = replace(checkpoint, served=served)
    check_config(checkpoint)
    check_shapes(source, checkpoint, {name: tuple(tensor.shape) for name, tensor in adapted.weights.items()})
    return checkpoint, adapted


def find_family(names: Collection[str], file_name: str) -> str | None:
    """The family whose tensors these names are, or None. Raises `CheckpointError` where several claim them."""
    claims = [name for name, module in FAMILIES.items() if module.recognise(names, file_name)]
    if len(claims) > 1:
        raise CheckpointError(f"{file_name} could be of {' or '.join(claims)}: say which with --family")
    return claims[0] if claims else None


def describe_foreign(path: Path) -> str:
    """For an error message: which family's file this is, as far as names tell, and how to convert it."""
    names = without_prefix(dict.fromkeys(read_names(path)))
    why = unserved.reason(names)
    if why:
        return why
    try:
        name = find_family(names, named_after(path))
    except CheckpointError:
        name = None
    of = f"a checkpoint of {FAMILIES[name].TITLE}" if name else "not one of hear_jepa yet"
    return f"{of}: turn it into our format with `hear-jepa convert {path} --out NAME.safetensors`"
