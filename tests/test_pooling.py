"""Claims about scenes:

* a scene is the mean of its columns, or mean and standard deviation, as NumPy has them, however the columns come;
* columns are differentiable, and are the timestamps of a column's hop.
"""

from dataclasses import replace

import numpy
import pytest
import torch

from hear_jepa import Embedder
from hear_jepa.model.pooling import Pool


@pytest.mark.parametrize("pooling", ["mean", "mean+std"])
def test_a_pool_is_numpys(pooling):
    columns = 1000 + torch.randn(500, 7, generator=torch.Generator().manual_seed(0))
    pool = Pool(pooling)
    for part in columns.split([1, 0, 99, 400]):
        pool.add(part)
    expected = [columns.double().numpy().mean(0), columns.double().numpy().std(0)][: pooling.count("+") + 1]
    numpy.testing.assert_allclose(pool.embedding().numpy(), numpy.concatenate(expected), rtol=1e-5)
    assert pool.embedding().dtype == torch.float32


def test_a_scene_is_its_timestamps_pooled(checkpoint, minute):
    served = replace(checkpoint, served=replace(checkpoint.served, pooling="mean+std", scene_hop_ms=40))
    model = Embedder(served, hop_ms=40)
    assert model.scene_embedding_size == 2 * model.timestamp_embedding_size
    for n_samples in (100, 2500, 100_000):
        timestamps, _ = model.timestamps(minute[None, :n_samples])
        expected = torch.cat([timestamps.mean(1), timestamps.std(1, correction=0)], dim=1)
        torch.testing.assert_close(model.scenes(minute[None, :n_samples]), expected, rtol=0, atol=1e-5)
    mean = Embedder(served, pooling="mean")
    assert mean.scene_embedding_size == mean.timestamp_embedding_size
    torch.testing.assert_close(mean.scenes(minute[None]), model.scenes(minute[None])[:, : mean.scene_embedding_size])


def test_columns_carry_gradients_to_the_encoder(checkpoint, minute):
    weights = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
    model = Embedder(replace(checkpoint, weights=weights), hop_ms=160)
    model.encoder.requires_grad_(True)
    columns = model.columns(minute[None, :50_000])
    torch.testing.assert_close(columns.detach(), model.timestamps(minute[None, :50_000])[0])
    columns.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())
