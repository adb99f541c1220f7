"""Claims about the options: the preset `paper` is the paper's setting, number by number, and has what the authors' code
does; what a run would stumble over is refused at its start; the command line overrides a
preset and nothing else; options that differ from a saved run are named; every option is documented."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import docstring_parser
import pytest
import torch

from hear_jepa.errors import OptionError
from hear_jepa.model.vit import ViT
from hear_jepa.train.__main__ import parse
from hear_jepa.train.config import PRESETS, ServeConfig, TrainConfig, check, differences, to_json


def test_the_preset_paper_is_the_papers_setting():
    paper = PRESETS["paper"][1]
    vit = paper.encoder.vit(n_mels=80)
    assert (vit.width, vit.depth, vit.heads, vit.mlp_ratio, vit.norm_eps) == (768, 12, 12, 4.0, 1e-5)
    assert (vit.n_freq_patches, vit.n_time_patches) == (5, 13)
    assert not vit.class_token
    assert dataclasses.astuple(paper.predictor) == (512, 8, 16)
    assert (paper.mask.strategy, round(paper.mask.context_share * 65)) == ("unstructured", 26)
    assert (paper.target.domain, paper.target.top_layers, paper.target.centre) == ("input", 1, False)
    assert (paper.loss.kind, paper.loss.normalise_target) == ("smooth-l1", True)
    assert (paper.optim.batch_size, paper.optim.betas, paper.optim.weight_decay) == (2048, (0.9, 0.95), 0.05)
    assert paper.optim.peak_lr == pytest.approx(3e-4 * 2048 / 256)
    assert paper.optim.warmup == pytest.approx(paper.optim.steps * 20 / 300, abs=1)
    assert (paper.optim.clip, paper.compute.precision) == (3.0, "fp16")
    assert (paper.ema.start, paper.ema.end, paper.ema.shape) == (0.99995, 0.99999, "linear")


def test_the_preset_paper_has_what_the_authors_code_does():
    def choices(config):
        optim, ema = config.optim, config.ema
        return (
            *(optim.decay, optim.warmup_from_zero, config.target.loss_on),
            *(config.encoder.random_patch_bias, ema.reaches_end, ema.after_skipped_steps),
        )

    assert choices(PRESETS["paper"][1]) == ("all", True, "all", True, False, True)
    assert choices(PRESETS["tiny"][1]) == ("matrices", False, "hidden", False, True, False)


def test_the_size_of_vit_base():
    with torch.device("meta"):
        parameters = sum(p.numel() for p in ViT(PRESETS["paper"][1].encoder.vit(80)).parameters())
    assert parameters == 256 * 768 + 768 + 12 * (12 * 768**2 + 13 * 768) + 2 * 768


def test_the_command_line_overrides_a_preset():
    options = (
        "--optim.steps 7 --mask.strategy time --target.no-centre --encoder.frames 320 --loss.regularisers clip 0.1"
    )
    config = parse(["tiny", *options.split()])
    tiny = to_json(PRESETS["tiny"][1])
    assert sorted(differences(tiny, to_json(config))) == [
        "encoder.frames: 208 -> 320",
        "loss.regularisers: [['reconstruction', 1.0], ['clip', 1.0]] -> [['clip', 0.1]]",
        "mask.strategy: unstructured -> time",
        "optim.steps: 20000 -> 7",
        "target.centre: True -> False",
    ]


def test_what_a_run_would_stumble_over_is_refused_at_its_start():
    tiny = PRESETS["tiny"][1]
    wrong = {
        "--monitor.save-every is 0": {"monitor": replace(tiny.monitor, save_every=0)},
        "--predictor.depth is 0": {"predictor": replace(tiny.predictor, depth=0)},
        "--serve.layers has 7.*0 to 6": {"serve": ServeConfig(layers=(1, 7))},
        "--serve.hop-ms must be one of 10, 20, 40, 80, 160, not 30": {"serve": ServeConfig(hop_ms=30)},
        "frames is 200.*multiple of the patch": {"encoder": replace(tiny.encoder, frames=200)},
        "frames is 0.*multiple of the patch": {"encoder": replace(tiny.encoder, frames=0)},
        "n-mels is 100.*multiple of the patch": {"front_end": replace(tiny.front_end, n_mels=100)},
        "set --serve.columns 0, or --encoder.positions rotary-time": {
            "serve": ServeConfig(columns=26),
            "encoder": replace(tiny.encoder, positions="sine-cosine"),
        },
        "take one mask of a crop": {"mask": replace(tiny.mask, masks_per_crop=2)},
        "serve the context": {"serve": ServeConfig("target"), "target": replace(tiny.target, frozen_from=Path("x"))},
    }
    check(tiny)
    for message, options in wrong.items():
        with pytest.raises(OptionError, match=message):
            check(replace(tiny, **options))


def test_unknown_options_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(["tiny", "--optim.momentumm", "1"])
    assert stopped.value.code == 2 and "momentumm" in "".join(capsys.readouterr())


def test_every_option_is_documented():
    values = (TrainConfig(), *vars(TrainConfig()).values())
    for section in (type(value) for value in values if dataclasses.is_dataclass(value)):
        documented = {p.arg_name for p in docstring_parser.parse_from_object(section).params if p.description}
        plain = {f.name for f in dataclasses.fields(section) if not dataclasses.is_dataclass(f.default_factory)}
        assert plain <= documented, section.__name__
