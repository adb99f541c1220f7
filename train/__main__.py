"""Pretrain an encoder.

    python -m hear_jepa.train.corpus files MUSIC/ SPEECH/ --out shards
    python -m hear_jepa.train tiny --data.source shards                            # two CPU cores
    python -m hear_jepa.train tiny --data.source shards --out runs/tiny --resume   # after a kill
    torchrun --nproc-per-node 8 -m hear_jepa.train paper --data.source shards      # 8 GPUs
    torchrun … paper --mask.strategy time --target.domain latent                   # another cell of the paper's tables

A preset comes first, then whatever is to differ from it, as --section.option VALUE.
"""

import logging
import sys

from hear_jepa.cli import REFUSED, exit_code

try:
    import tyro
except ImportError:
    print('hear_jepa.train: training needs the extra train: pip install ".[train]" in the clone', file=sys.stderr)
    sys.exit(REFUSED)

from hear_jepa.train.config import PRESETS, TrainConfig, check
from hear_jepa.train.data.sampler import check_source
from hear_jepa.train.loop import train
from hear_jepa.train.ranks import is_main_rank, spread_over_cpu
from hear_jepa.train.run_state import check_out


def parse(arguments: list[str] | None = None) -> TrainConfig:
    """The options of a command line; exits with a message on an unknown one."""
    return tyro.extras.overridable_config_cli(PRESETS, args=arguments, description=__doc__, prog="hear_jepa.train")


def main() -> int:
    """Run the command line; exit codes as those of `hear-jepa`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    return exit_code(run, "hear_jepa.train")


def run() -> int:
    """Train as the command line says, and print what the run leaves."""
    config = parse()
    check(config)  # here too: every rank would say it
    check_out(config)
    check_source(config.data, config.front_end.sample_rate)
    if spread_over_cpu(config.compute):
        return 0
    path = train(config)
    if is_main_rank():
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
