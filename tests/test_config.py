"""Claims about the options: the preset `paper` is the paper's setting, number by number; the command line overrides a
preset and nothing else; options that differ from a saved run are named; every option is documented."""

import dataclasses

import docstring_parser
import pytest

from hear_jepa.errors import OptionError
from hear_jepa.model.vit import ViT
from hear_jepa.train.__main__ import parse
from hear_jepa.train.config import PRESETS, EncoderConfig, TrainConfig, differences, to_json


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


def test_the_size_of_vit_base():
    parameters = sum(p.numel() for p in ViT(PRESETS["paper"][1].encoder.vit(80)).parameters())
    assert parameters == 256 * 768 + 768 + 12 * (12 * 768**2 + 13 * 768) + 2 * 768


def test_the_command_line_overrides_a_preset():
    options = "--optim.steps 7 --mask.strategy time --target.no-centre --encoder.frames 320"
    config = parse(["tiny", *options.split()])
    tiny = to_json(PRESETS["tiny"][1])
    assert sorted(differences(tiny, to_json(config))) == [
        "encoder.frames: 208 -> 320",
        "mask.strategy: unstructured -> time",
        "optim.steps: 20000 -> 7",
        "target.centre: True -> False",
    ]


@pytest.mark.parametrize("frames", [0, 8, 200])
def test_frames_are_whole_patches(frames):
    with pytest.raises(OptionError, match=f"{frames}.*multiple of the patch"):
        EncoderConfig(frames=frames).vit(80)


def test_every_option_is_documented():
    values = (TrainConfig(), *vars(TrainConfig()).values())
    for section in (type(value) for value in values if dataclasses.is_dataclass(value)):
        documented = {p.arg_name for p in docstring_parser.parse_from_object(section).params if p.description}
        plain = {f.name for f in dataclasses.fields(section) if not dataclasses.is_dataclass(f.default_factory)}
        assert plain <= documented, section.__name__
