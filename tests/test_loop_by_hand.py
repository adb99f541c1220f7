"""Claims about the loop, each against numbers that are computed here and not by another run:

* three steps from config and seed, recomputed in plain arithmetic (crops, masks, loss, clipped AdamW, moving average,
  running mean of the targets' positions), give the saved state; learning rate and momentum are the schedules';
* every step has masks of its own, which seed and step decide;
* `--init-from` and `--target.frozen-from` take weights and normalisation from there; what does not fit is refused;
* what is to be served is in the final checkpoint;
* a run with fp16, stopped and resumed, ends as one that never stopped; a step that overflowed moves no weights.
"""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
import torch.nn.functional as F
from conftest import random_checkpoint
from training_runs import small_run

import hear_jepa
from hear_jepa.errors import OptionError
from hear_jepa.model.checkpoint import load_checkpoint, save_checkpoint
from hear_jepa.model.front_end import LogMel
from hear_jepa.model.vit import patchify, take
from hear_jepa.train import loop
from hear_jepa.train.config import PRESETS, ComputeConfig, EmaConfig, OptimConfig, ServeConfig
from hear_jepa.train.data.normalisation import normalised
from hear_jepa.train.data.sampler import crop_stream
from hear_jepa.train.jepa import JEPA, TargetConfig
from hear_jepa.train.losses import LossConfig
from hear_jepa.train.masking import Mask, MaskConfig
from hear_jepa.train.metrics_log import read_metrics
from hear_jepa.train.run_state import LATEST, read_state


@pytest.fixture
def config(sixteen_clips, tmp_path):
    return small_run(sixteen_clips, tmp_path / "run")


# -------------------------------------------------------------------- three steps by hand

RATES = [0.015, 0.03, 0.03]  # a warm-up of two steps; the first step after it has the peak
MOMENTA = [0.5, 0.7, 0.9]
CLIP, DECAY, BETAS = 0.05, 0.5, (0.9, 0.95)


def by_hand(config):
    """The model and the running mean of positions after three steps, and the norms of the gradients before clipping."""
    norms = []
    front_end = config.front_end.front_end(0.0, 1.0)
    front_end = normalised(front_end, config.data, config.encoder.frames, config.seed)
    torch.manual_seed(config.seed)
    jepa = JEPA(config.encoder.vit(80), config.predictor, config.target, config.loss)
    weights = dict(jepa.trained_parameters())
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in weights.items()}
    mean, known = torch.zeros(30, 32), False
    crops = crop_stream(config.data, batch_size=8, n_samples=front_end.n_samples(96), seed=config.seed)
    for step in range(3):
        log_mel = LogMel(front_end).valid(next(crops))
        generator = torch.Generator().manual_seed(loop.mixed_seed(config.seed, step))
        order = torch.rand(16, 30, generator=generator).argsort(1)
        context, hidden = order[:, :9].sort(1).values, order[:, 9:].sort(1).values  # 0.3 of 30 patches are context
        loss, seen = the_loss(jepa, patchify(log_mel).repeat(2, 1, 1), context, hidden, mean)
        gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        norm = math.sqrt(sum(g.double().square().sum().item() for g in gradients.values()))
        assert norm > 2 * CLIP  # or nothing would be clipped
        norms.append(norm)
        with torch.no_grad():
            for name, weight in weights.items():
                adamw(weight, gradients[name] * CLIP / norm, moments[name], step + 1, RATES[step])
            trained = {**dict(jepa.context_encoder.named_parameters()), **dict(jepa.context_encoder.named_buffers())}
            target = {**dict(jepa.target_encoder.named_parameters()), **dict(jepa.target_encoder.named_buffers())}
            for name, tensor in target.items():
                tensor.copy_(MOMENTA[step] * tensor + (1 - MOMENTA[step]) * trained[name])
        of_step = torch.stack([seen[hidden == token].mean(0) for token in range(30)])  # all are hidden in some mask
        mean = 0.99 * mean + 0.01 * of_step if known else of_step
        known = True
    return jepa, mean, norms


def the_loss(jepa, patches, context, hidden, mean):
    """Loss of masks [16, K], and the target embeddings before their centring."""
    embedded = jepa.context_encoder(patches, context)
    tokens = jepa.predictor(embedded, context, hidden)
    with torch.no_grad():
        layers = jepa.target_encoder(patches, layers=[1, 2])
        seen = take(sum(F.layer_norm(x, (32,)) for x in layers) / 2, hidden)
    centred = seen - mean[hidden]
    scale = (centred.var(-1, keepdim=True) + 1e-6).sqrt()
    difference = (jepa.predictor.head(tokens[:, 9:]) - (centred - centred.mean(-1, keepdim=True)) / scale).abs()
    loss = torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean()
    log_mel = take(patches, torch.cat([context, hidden], 1))
    return loss + 0.3 * (jepa.predictor.heads["reconstruction"](tokens) - log_mel).square().mean(), seen


def adamw(weight, gradient, moments, count, rate):
    """One step, in place: decay of matrices, moments, bias correction."""
    first, second = moments
    first.copy_(BETAS[0] * first + (1 - BETAS[0]) * gradient)
    second.copy_(BETAS[1] * second + (1 - BETAS[1]) * gradient**2)
    if weight.dim() >= 2:
        weight.mul_(1 - rate * DECAY)
    corrected = (second / (1 - BETAS[1] ** count)).sqrt() + 1e-8
    weight.sub_(rate / (1 - BETAS[0] ** count) * first / corrected)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_three_steps_by_hand(config, accumulation):
    config = replace(
        config,
        seed=7,
        mask=MaskConfig(context_share=0.3, masks_per_crop=2),
        loss=LossConfig(regularisers=(("reconstruction", 0.3),)),
        optim=OptimConfig(
            steps=3, batch_size=8, base_lr=0.96, warmup_steps=2, clip=CLIP, weight_decay=DECAY,
            final_lr_share=1 / 3, accumulation=accumulation,
        ),
        ema=EmaConfig(MOMENTA[0], MOMENTA[-1]),
    )  # fmt: skip
    loop.train(config)
    jepa, mean, norms = by_hand(config)
    written = [line["gradient_norm"] for line in read_metrics(config.out) if "loss" in line]
    assert written == pytest.approx(norms, rel=1e-3)
    saved = read_state(config.out / LATEST)["jepa"]
    for name, tensor in jepa.state_dict().items():
        if name == "position_mean.mean":
            tensor = mean
        if name == "position_mean.seen":
            continue
        found = saved[name]
        if name.endswith("qkv.bias"):  # the keys' bias has a gradient of rounding alone, which Adam makes a step
            tensor, found = (torch.cat([x[:32], x[64:]]) for x in (tensor, found))
        torch.testing.assert_close(found, tensor, atol=2e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


# -------------------------------------------------------------------- what a run uses


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_what_is_written_at_every_step_are_the_schedules(config, schedule):
    optim = replace(config.optim, schedule=schedule, warmup_steps=3, decay_share=0.25, final_lr_share=0.1)
    config = replace(config, optim=optim, ema=EmaConfig(0.5, 0.9, "cosine", ramp_steps=6))
    used = []
    run = loop.Run(config)
    step, update = run.optimiser.adamw.step, run.jepa.update_target
    run.optimiser.adamw.step = lambda: (used.append([g["lr"] for g in run.optimiser.adamw.param_groups]), step())
    momenta = []
    run.jepa.update_target = lambda momentum: (momenta.append(momentum), update(momentum))
    run.train()
    lines = [line for line in read_metrics(config.out) if "loss" in line]
    peak = 0.03 * 8 / 256
    after = [peak * (0.1 + 0.9 * (1 + math.cos(math.pi * k / 9)) / 2) for k in range(9)]
    if schedule == "constant":
        after = [peak] * 6 + [peak * (0.1 + 0.9 * k / 4) for k in (3, 2, 1)]
    expected = [peak / 3, peak * 2 / 3, peak, *after]
    assert [line["learning_rate"] for line in lines] == pytest.approx(expected)
    assert [rate for rate, *_ in used] == pytest.approx(expected) and all(a == b for a, b in used)
    ramp = [0.5 + 0.4 * (1 - math.cos(math.pi * min(k / 5, 1))) / 2 for k in range(12)]
    assert [line["ema_momentum"] for line in lines] == pytest.approx(ramp) == momenta


def test_every_step_has_masks_of_its_own(config):
    run = loop.Run(config)
    seen, forward = [], run.forward
    run.forward = lambda log_mel, mask: (seen.append(mask), forward(log_mel, mask))[1]
    run.train()
    assert len({tuple(mask.target.flatten().tolist()) for mask in seen}) == len(seen) == 12
    for step, mask in enumerate(seen):
        order = torch.rand(8, 30, generator=torch.Generator().manual_seed(loop.mixed_seed(0, step))).argsort(1)
        assert mask.context.equal(order[:, :9].sort(1).values[None])
        assert mask.target.equal(order[:, 9:].sort(1).values[None])
    assert len({loop.mixed_seed(seed, step) for seed in range(30) for step in range(30)}) == 900


@pytest.fixture
def earlier(config, tmp_path):
    """A checkpoint that fits the run: its weights differ from any initialisation."""
    front_end = config.front_end.front_end(-6.0, 3.0)
    checkpoint = random_checkpoint(config.encoder.vit(80), seed=5, front_end=front_end)
    save_checkpoint(tmp_path / "earlier.safetensors", checkpoint)
    return tmp_path / "earlier.safetensors", checkpoint


def test_a_warm_start_has_the_checkpoints_weights(config, earlier):
    path, checkpoint = earlier
    run = loop.Run(replace(config, init_from=path))
    for encoder in (run.jepa.context_encoder, run.jepa.target_encoder):
        assert all(tensor.equal(checkpoint.weights[name]) for name, tensor in encoder.state_dict().items())
    assert run.front_end == checkpoint.front_end
    run.train()
    path.rename(path.with_name("moved.safetensors"))  # a run that has started needs it no longer
    resumed = loop.Run(replace(config, init_from=path, resume=True))
    assert resumed.step == 12 and resumed.front_end == checkpoint.front_end
    path.with_name("moved.safetensors").rename(path)
    config = replace(config, out=config.out / "other")
    with pytest.raises(OptionError, match="another encoder"):
        loop.Run(replace(config, init_from=path, encoder=replace(config.encoder, width=64)))
    with pytest.raises(OptionError, match="another front end"):
        loop.Run(replace(config, init_from=path, front_end=replace(config.front_end, n_fft=1024)))


def test_a_frozen_target_gives_the_targets(config, earlier, tmp_path):
    path, checkpoint = earlier
    config = replace(config, target=TargetConfig("latent", frozen_from=path), optim=replace(config.optim, steps=3))
    run = loop.Run(config)
    path = run.train()
    frozen = run.jepa.target_encoder.state_dict()
    assert all(tensor.equal(checkpoint.weights[name]) for name, tensor in frozen.items())
    assert load_checkpoint(path).served.encoder == "context"
    assert not any("ema_momentum" in line for line in read_metrics(config.out))  # there is none
    patches = torch.randn(2, 30, 256)
    everything = torch.arange(30).expand(2, -1)
    target, _ = run.jepa.targets(patches, Mask(everything, everything), everything)
    outputs = checkpoint.build()(patches)
    expected = (outputs - outputs.mean(-1, keepdim=True)) / (outputs.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(target, expected, atol=1e-4, rtol=1e-4)
    config = replace(config, out=tmp_path / "other")
    with pytest.raises(OptionError, match="n_time_patches 6, this run 13"):
        loop.Run(replace(config, encoder=replace(config.encoder, frames=208)))
    louder = tmp_path / "louder.safetensors"
    save_checkpoint(louder, replace(checkpoint, front_end=replace(checkpoint.front_end, mean=-5.0)))
    with pytest.raises(OptionError, match="one normalisation for both"):
        loop.Run(replace(config, init_from=louder))


def test_a_shipped_model_can_be_named(config):
    tiny = load_checkpoint(Path(hear_jepa.__file__).parent / "weights" / "tiny.safetensors")
    tiny = tiny.in_windows_of(13)  # it is served in longer ones than a crop's
    preset = replace(PRESETS["tiny"][1], data=config.data, out=config.out, compute=config.compute)
    named = replace(preset, init_from=Path("tiny"))
    wider = replace(preset, encoder=replace(preset.encoder, width=96))
    taught = replace(wider, target=replace(preset.target, frozen_from=Path("tiny")))
    for encoder in (loop.Run(named).jepa.context_encoder, loop.Run(taught).jepa.target_encoder):
        assert all(tensor.equal(tiny.weights[name]) for name, tensor in encoder.state_dict().items())
    by_wide = replace(preset, target=replace(preset.target, frozen_from=Path("wide")))  # served in longer windows
    teacher = loop.Run(by_wide).jepa.target_encoder
    assert (teacher.config.width, teacher.config.n_time_patches) == (384, 13)
    assert teacher.pos_embed.shape == (65, 384)
    with pytest.raises(OptionError, match="no model 'tinny'.*tiny"):
        loop.Run(replace(named, init_from=Path("tinny")))


def test_what_is_to_be_served_is_in_the_checkpoint(config):
    serve = ServeConfig("target", layers=(1, 2), pooling="mean+std", hop_ms=40)
    config = replace(config, serve=serve, optim=replace(config.optim, steps=2))
    checkpoint = load_checkpoint(loop.train(config))
    served = checkpoint.served
    assert (served.encoder, served.layers, served.pooling, served.scene_hop_ms) == ("target", (1, 2), "mean+std", 40)
    saved = read_state(config.out / LATEST)["jepa"]
    for name, tensor in checkpoint.weights.items():
        torch.testing.assert_close(tensor, saved[f"target_encoder.{name}"], atol=1e-3, rtol=1e-3)


def test_longer_windows_are_the_same_encoder(config):
    encoder = replace(config.encoder, positions="rotary-time")
    config = replace(config, encoder=encoder, serve=ServeConfig(columns=9), optim=replace(config.optim, steps=1))
    checkpoint = load_checkpoint(loop.train(config))
    assert checkpoint.grid.columns == 9
    patches = torch.randn(1, 30, 256)  # of a crop
    longer, own = (checkpoint.in_windows_of(columns).build()(patches) for columns in (9, 6))
    torch.testing.assert_close(longer, own)
    torch.testing.assert_close(checkpoint.build()(patches), own, atol=1e-3, rtol=1e-2)  # its positions are of 16 bits
    shorter = replace(config, serve=ServeConfig(columns=4), out=config.out / "shorter")
    assert load_checkpoint(loop.train(shorter)).grid.columns == 6  # those of a crop


def test_a_constant_rate_is_cut_by_a_decay_when_a_checkpoint_is_wanted(config, tmp_path):
    optim = replace(config.optim, steps=6, schedule="constant", decay_share=0.5, warmup_steps=1)
    config = replace(config, optim=optim, ema=EmaConfig(0.9, 0.99, ramp_steps=50))
    loop.Run(replace(config, out=tmp_path / "whole")).train()
    loop.Run(replace(config, optim=replace(optim, steps=3, decay_share=0.0))).train()
    loop.Run(replace(config, resume=True)).train()
    whole, cut = (read_state(out / LATEST) for out in (tmp_path / "whole", config.out))
    for name, tensor in whole["jepa"].items():
        assert tensor.equal(cut["jepa"][name]), name
    for shares in ({"optim": replace(optim, warmup_steps=0)}, {"ema": EmaConfig(0.9, 0.99)}):
        run = replace(config, out=tmp_path / next(iter(shares)), **shares)
        loop.Run(run).train()  # its warm-up or its momentum depends on when it ends
        with pytest.raises(OptionError, match=r"optim\.steps: 6 -> 9.*--optim.warmup-steps and --ema.ramp-steps"):
            loop.Run(replace(run, resume=True, optim=replace(run.optim, steps=9)))


def test_a_resumed_run_keeps_the_normalisation_that_it_began_with(config, tmp_path):
    """Also where it goes on with other sound: the weights fit the old statistics."""
    config = half_precision(config, 2)
    first = loop.Run(config)
    first.train()
    quieter = shutil.copytree(config.data.source, tmp_path / "quieter", ignore=shutil.ignore_patterns(".cache"))
    for path in quieter.rglob("*.flac"):
        audio, rate = soundfile.read(path)
        soundfile.write(path, audio / 10, rate)
    data = replace(config.data, source=str(quieter))
    assert abs(loop.Run(replace(config, out=tmp_path / "new", data=data)).front_end.mean - first.front_end.mean) > 1
    resumed = replace(config, data=data, resume=True, optim=replace(config.optim, steps=4))
    path = loop.Run(resumed).train()
    assert load_checkpoint(path).front_end == first.front_end


# -------------------------------------------------------------------- fp16


def half_precision(config, steps):
    optim = replace(config.optim, steps=steps, schedule="constant", decay_share=0.0, warmup_steps=1)
    compute = ComputeConfig(device="cpu", precision="fp16")
    return replace(config, optim=optim, ema=EmaConfig(0.9, 0.99, ramp_steps=50), compute=compute)


def train_in_half_precision(config, scale):
    """The state of a run whose loss scale starts, or goes on, there."""
    run = loop.Run(config)
    if not config.resume:
        run.optimiser.scaler.load_state_dict(run.optimiser.scaler.state_dict() | {"scale": scale, "growth_interval": 3})
    run.train()
    return read_state(config.out / LATEST)


def test_fp16_resumes_with_its_loss_scale(config, tmp_path):
    whole = train_in_half_precision(replace(half_precision(config, 8), out=tmp_path / "whole"), 1024.0)
    half = train_in_half_precision(half_precision(config, 5), 1024.0)
    resumed = train_in_half_precision(replace(half_precision(config, 8), resume=True), None)
    assert half["optimiser"]["scaler"]["scale"] == 2048.0  # it has grown once
    assert resumed["optimiser"]["scaler"] == whole["optimiser"]["scaler"]
    assert resumed["optimiser"]["scaler"]["scale"] == 4096.0
    for name, tensor in whole["jepa"].items():
        assert tensor.equal(resumed["jepa"][name]), name


@pytest.mark.parametrize("after_skipped_steps", [False, True])
def test_a_step_that_overflows_moves_no_weights(config, after_skipped_steps):
    config = half_precision(config, 1)
    config = replace(config, ema=replace(config.ema, after_skipped_steps=after_skipped_steps))
    run = loop.Run(config)
    with torch.no_grad():
        run.jepa.context_encoder.norm.weight.add_(1.0)  # so that the moving average has somewhere to go
    before = {name: tensor.clone() for name, tensor in run.jepa.state_dict().items()}
    run.optimiser.scaler.load_state_dict(run.optimiser.scaler.state_dict() | {"scale": 2.0**60})
    run.train()
    after = run.jepa.state_dict()
    moved = {name for name, tensor in before.items() if not tensor.equal(after[name])}
    assert moved == ({"target_encoder.norm.weight"} if after_skipped_steps else set())
    assert read_state(config.out / LATEST)["optimiser"]["scaler"]["scale"] == 2.0**59
    assert [line["skipped_steps"] for line in read_metrics(config.out) if "loss" in line] == [1]
