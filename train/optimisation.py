"""AdamW with its decay groups, mixed precision and gradient clipping, as one object that takes a step."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hear_jepa.train.config import ComputeConfig, OptimConfig

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """What the encoders and the predictor compute in under autocast; none: float32."""
    if precision == "auto":
        fast = {"cpu": _multiplies_bfloat16, "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False)}
        precision = "bf16" if fast.get(device.type, bool)() else "fp32"
    return AUTOCAST[precision]


def attention_kernel(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager:
    """Inside, attention is plain matrix products where these train faster: on a CPU under bfloat16, where the backward
    pass of torch's fused kernel takes twice as long."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" and dtype is not None else nullcontext()


def _multiplies_bfloat16() -> bool:
    """Whether the processor has AVX-512 BF16 or AMX; without them bfloat16 is slower than float32."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name)() for name in names if hasattr(torch.cpu, name))


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> list[dict]:
    """Matrices decay; biases, norms and single tokens only where the config says so."""
    named, weight_decay = list(named), config.weight_decay
    if config.decay == "all":
        return [{"params": [p for _, p in named], "weight_decay": weight_decay}]
    return [
        {"params": [p for _, p in named if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for _, p in named if p.dim() < 2], "weight_decay": 0.0},
    ]


class Optimiser:
    """AdamW, fused where torch can, with the loss scaling that fp16 needs."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        config: OptimConfig,
        compute: ComputeConfig,
        device: torch.device,
    ):
        groups = parameter_groups(named, config)
        self.parameters = [p for group in groups for p in group["params"]]
        self.adamw = torch.optim.AdamW(
            groups,
            lr=config.peak_lr,
            betas=config.betas,
            fused=device.type in ("cuda", "cpu"),
            foreach=None if device.type in ("cuda", "cpu") else True,
        )
        self.clip = config.clip
        self.scaler = torch.amp.GradScaler(device.type, enabled=compute.precision == "fp16")

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, lr: float) -> tuple[float, bool]:
        """Clip, step and clear the gradients. Returns the gradient's norm and whether the step was taken.

        A non-finite norm leaves weights and moments as they were.
        """
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.adamw)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.clip or float("inf")))
        finite = norm == norm and norm not in (float("inf"), float("-inf"))
        if finite:
            self.scaler.step(self.adamw)
        self.scaler.update()
        self.adamw.zero_grad(set_to_none=True)
        return norm, finite

    def state_dict(self) -> dict:
        return {"adamw": self.adamw.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.adamw.load_state_dict(state["adamw"])
        if state["scaler"]:  # empty where the run had no loss scaling so far
            self.scaler.load_state_dict(state["scaler"])
