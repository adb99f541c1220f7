"""Claims about the optimiser and what a step is computed in:

* matrices decay and nothing else, or everything where asked for; a gradient within the limit is left as it is;
* `auto` is bfloat16 exactly where the machine multiplies it; then attention on a CPU is plain products, whose gradients
  are those of the fused kernel;
* the memory of a step is kept, unless the user tunes the C library's.
"""

import itertools
import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from hear_jepa.model.vit import ViT, ViTConfig
from hear_jepa.train import ranks
from hear_jepa.train.config import ComputeConfig, OptimConfig
from hear_jepa.train.optimisation import Optimiser, attention_kernel, autocast_type

CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda", "mps"))
BF16 = torch.bfloat16


def optimiser(**options):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    config = OptimConfig(weight_decay=0.5, **options)
    return model, Optimiser(model.named_parameters(), config, ComputeConfig(), torch.device("cpu"))


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_what_decays(decay):
    model, adamw = optimiser(decay=decay)
    adamw.backward(sum((p * 0).sum() for p in model.parameters()))  # no gradient: what moves has decayed
    adamw.step(0.1)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, torch.ones_like(p))}
    assert moved == ({"0.weight"} if decay == "matrices" else {"0.weight", "0.bias", "1.weight", "1.bias"})
    torch.testing.assert_close(model[0].weight.data, torch.full((3, 3), 1 - 0.1 * 0.5))


@pytest.mark.parametrize(("clip", "largest"), [(3.0, 3.0), (100.0, 10.0), (0.0, 10.0)])
def test_the_gradient_is_clipped_to_its_limit(clip, largest):
    model, adamw = optimiser(clip=clip)
    taken = []
    adamw.adamw.register_step_pre_hook(lambda *_: taken.append([p.grad.clone() for p in adamw.parameters]))
    adamw.backward(model[0].bias.sum() * 10 / 3**0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    norm, finite = adamw.step(0.1)
    assert norm == pytest.approx(10.0) and finite
    assert torch.cat([g.flatten() for g in taken[0]]).norm().item() == pytest.approx(largest, rel=1e-5)


def test_auto_is_bfloat16_exactly_where_the_machine_multiplies_it(monkeypatch):
    for avx, amx, cuda in itertools.product((False, True), repeat=3):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx, raising=False)
        gpu = lambda including_emulation, cuda=cuda: cuda or including_emulation  # noqa: E731
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", gpu)
        assert autocast_type("auto", CPU) == (BF16 if avx or amx else None)
        assert autocast_type("auto", CUDA) == (BF16 if cuda else None)
        assert autocast_type("auto", MPS) is None
        asked = [autocast_type(precision, CPU) for precision in ("fp32", "bf16", "fp16")]
        assert asked == [None, BF16, torch.float16]
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):  # a torch that cannot say
        monkeypatch.delattr(torch.cpu, name)
    assert autocast_type("auto", CPU) is None


def test_plain_attention_has_the_gradients_of_the_fused_kernel():
    encoder, patches = ViT(ViTConfig(width=48, depth=2, heads=3)).train(), torch.randn(4, 65, 256)
    weight = torch.randn(48)

    def gradients(dtype, kernel):
        encoder.zero_grad()
        with kernel:
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                loss = (encoder(patches).float() * weight).square().mean()
            loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in encoder.parameters()])

    exact, fused = gradients(None, nullcontext()), gradients(BF16, nullcontext())
    plain = gradients(BF16, attention_kernel(BF16, CPU))
    assert plain.norm() > 0 and not plain.equal(exact)
    for one, other in ((plain, fused), (plain, exact), (fused, exact)):
        assert (one - other).norm() < 0.03 * exact.norm()  # bfloat16 has 8 bits


def test_attention_is_plain_on_a_cpu_under_bfloat16_alone():
    for dtype, device, plain in [(BF16, CPU, True), (None, CPU, False), (BF16, CUDA, False), (None, CUDA, False)]:
        with attention_kernel(dtype, device):
            assert torch.backends.cuda.math_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled() != plain
    assert torch.backends.cuda.flash_sdp_enabled()


def test_freed_memory_is_kept_unless_the_user_tunes_it(monkeypatch):
    calls = []
    monkeypatch.setattr(ranks.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *call: calls.append(call)))
    monkeypatch.setattr(ranks.sys, "platform", "linux")
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)
    for name in ("MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            ranks.keep_freed_memory()
    assert calls == []
    ranks.keep_freed_memory()
    assert calls == [(-1, 2**31 - 1), (-3, 32 * 2**20)]  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    monkeypatch.setattr(ranks.ctypes, "CDLL", lambda _: SimpleNamespace())  # musl
    ranks.keep_freed_memory()
    monkeypatch.setattr(ranks.sys, "platform", "darwin")
    monkeypatch.setattr(ranks.ctypes, "CDLL", None)
    ranks.keep_freed_memory()
