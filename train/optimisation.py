"""AdamW with its decay groups, mixed precision and gradient clipping, as one object that takes a step."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hear_jepa.train.config import ComputeConfig, OptimConfig

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


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
        """Add the gradient of a (micro-batch's) loss."""
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
        """Moments and loss scale."""
        return {"adamw": self.adamw.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restore `state_dict()`."""
        self.adamw.load_state_dict(state["adamw"])
        if state["scaler"]:  # empty where the run had no loss scaling so far
            self.scaler.load_state_dict(state["scaler"])
