"""Pretrain an encoder.

    python -m hear_jepa.train.corpus files MUSIC/ SPEECH/ --out shards
    python -m hear_jepa.train tiny --data.source shards                            # two CPU cores
    python -m hear_jepa.train tiny --data.source shards --out runs/tiny --resume   # after a kill
    torchrun --nproc-per-node 8 -m hear_jepa.train paper --data.source shards      # 8 GPUs
    python -m hear_jepa.train small --mask.strategy time --target.domain latent    # another cell of the paper's tables

A preset comes first, then whatever is to differ from it, as --section.option VALUE.
"""

import logging
import sys

import tyro

from hear_jepa.errors import HearJepaError
from hear_jepa.train.config import PRESETS, TrainConfig
from hear_jepa.train.loop import train
from hear_jepa.train.ranks import spread_over_cpu


def parse(arguments: list[str] | None = None) -> TrainConfig:
    """The options of a command line; exits with a message on an unknown one."""
    return tyro.extras.overridable_config_cli(PRESETS, args=arguments, description=__doc__, prog="hear_jepa.train")


def main() -> int:
    """Run the command line; a mistake of the user's becomes one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    config = parse()
    try:
        spread_over_cpu(config.compute)
        print(train(config))
    except HearJepaError as error:
        print(f"hear_jepa.train: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
