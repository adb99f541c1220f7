"""Claims about what is watched: RankMe counts directions; content statistics do not mistake positions for content; a
constant encoder, one that repeats positions and one of few directions are called collapsed, a healthy one is not; the
probe gives linear and nearest-neighbour scores of real tasks, in per cent."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hear_jepa.model.checkpoint import ServedConfig
from hear_jepa.model.front_end import FrontEndConfig
from hear_jepa.model.vit import ViT, ViTConfig
from hear_jepa.train.collapse import collapse_statistics, is_collapsed, rank_me, watch_collapse
from hear_jepa.train.online_probe import probe, snapshot

CONFIG = ViTConfig(width=64, depth=2, heads=2, n_time_patches=4)


def log_mel(n=64):
    return torch.randn(n, 80, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rank", [1, 5, 40])
def test_rank_me_of_orthogonal_directions(rank):
    basis = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0))).Q
    assert rank_me(basis[:rank]) == pytest.approx(rank, rel=0.01)


def test_a_healthy_encoder_is_not_collapsed():
    encoder = ViT(CONFIG).train()
    statistics = collapse_statistics(encoder, log_mel())
    assert encoder.training
    assert statistics["content_std"] > 0.3
    assert 0 < statistics["position_share"] < 0.9
    assert statistics["rank_me"] > 0.5 * CONFIG.width
    assert not is_collapsed(statistics, CONFIG.width)


def test_an_encoder_that_repeats_the_position_is_collapsed():
    encoder = ViT(CONFIG)
    torch.nn.init.zeros_(encoder.patch_embed.proj.weight)  # deaf
    statistics = collapse_statistics(encoder, log_mel())
    assert statistics["std"] > 0.1  # the plain deviation does not notice
    assert statistics["content_std"] < 1e-3
    assert statistics["position_share"] > 0.999
    assert is_collapsed(statistics, CONFIG.width)
    written, encoders = {}, {"context": encoder, "target": ViT(CONFIG)}
    watch_collapse(encoders, log_mel(), 7, SimpleNamespace(write=lambda step, values: written.update(values)))
    assert [name for name in written if name.endswith("collapsed")] == ["context/collapsed"]
    assert written["context/content_std"] == statistics["content_std"]


def test_an_encoder_of_one_direction_is_collapsed():
    encoder = ViT(CONFIG)
    weight = encoder.patch_embed.proj.weight
    with torch.no_grad():
        weight.copy_(torch.randn(CONFIG.width, 1) @ torch.ones(1, weight.shape[1]))
        encoder.pos_embed.zero_()
        for block in encoder.blocks:
            torch.nn.init.zeros_(block.attn.proj.weight)
            torch.nn.init.zeros_(block.mlp.fc2.weight)
    statistics = collapse_statistics(encoder, log_mel())
    assert statistics["rank_me"] < 3
    assert is_collapsed(statistics, width=192)


def test_the_probe_scores_real_tasks():
    tasks = [Path(__file__).parent / "tasks" / "percussion_kind-v1-small"]
    checkpoint = snapshot(ViT(CONFIG), FrontEndConfig(), ServedConfig("context"), {})
    scores = probe(checkpoint, tasks, 120, torch.device("cpu"))
    assert set(scores) == {"percussion_kind-v1-small", "mean", "knn/percussion_kind-v1-small", "knn/mean"}
    assert 20 < scores["mean"] <= 100  # chance is 18: even a random encoder hears a drum
    assert scores["knn/mean"] == scores["knn/percussion_kind-v1-small"]
