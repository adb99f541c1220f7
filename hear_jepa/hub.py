"""Checkpoints on the Hugging Face Hub: `hf:owner/name[@revision][/file]`. Weights only: nothing there is ever run."""

import re
from pathlib import Path

from hear_jepa.errors import CheckpointError, OptionError

PREFIX = "hf:"
WEIGHTS = "model.safetensors"  # the file where a name says none
NAME = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[^/@]+))?(/(?P<file>[^@]+))?")


def hub_file(name: str) -> Path:
    """The file that a name stands for, fetched if the Hub's cache does not hold it.

    A revision is a branch, a tag or a commit. With HF_HUB_OFFLINE=1, or without network, only the cache is asked.
    Raises OptionError for a name that is none, CheckpointError for a file that cannot be had.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise OptionError(f"{name!r} names nothing on the Hub: give hf:owner/name[@revision][/file.safetensors]")
    file = found["file"] or WEIGHTS
    if not file.endswith(".safetensors"):
        raise OptionError(f"{name!r}: only .safetensors files are loaded from the Hub, not {file}")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise OptionError("loading from the Hub needs huggingface_hub: pip install huggingface_hub") from error
    try:
        return Path(hf_hub_download(found["repository"], file, revision=found["revision"]))
    except (EntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{name} cannot be had ({reason}): check the name, the network and, for a private one, `hf auth login`"
        ) from error
