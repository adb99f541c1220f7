"""Fine-tune the encoder to hear events, and save it as a checkpoint of its own. Plain PyTorch.

    python examples/fine_tune.py tests/tasks/percussion_events-v1-small percussion.safetensors

The folder is a HEAR task of events. Prints the score of a linear probe of the frozen encoder, and of both trained on.
"""

import sys
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

import hear_jepa
from hear_jepa.api import named_checkpoint
from hear_jepa.evaluation.metrics import mean_average_precision
from hear_jepa.evaluation.tasks import read_task
from hear_jepa.files.audio import read_audio
from hear_jepa.model.checkpoint import save_checkpoint


def read_splits(model, task, *splits: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Audio [clips, samples], and whether each label is there at each column [clips, T, labels]."""
    clips = [clip for split in splits for clip in task.clips[split]]
    audio = nn.utils.rnn.pad_sequence([read_audio(clip.path, mono=True)[0][0] for clip in clips], batch_first=True)
    times = model.grid.timestamps_ms(audio.shape[1], model.grid.column_ms)  # centres of the columns
    targets = torch.zeros(len(clips), len(times), len(task.vocabulary))
    for number, clip in enumerate(clips):
        for event in clip.events:
            there = (times >= event.start_ms) & (times < event.start_ms + model.grid.column_ms)
            targets[number, there, task.vocabulary.index(event.label)] = 1
    return audio, targets


def fit_probe(columns: torch.Tensor, targets: torch.Tensor) -> nn.Sequential:
    """Logistic regression on standardised columns: [n, size] and [n, labels]."""
    probe = nn.Sequential(nn.BatchNorm1d(columns.shape[1], affine=False), nn.Linear(columns.shape[1], targets.shape[1]))
    optimiser = torch.optim.Adam(probe.parameters(), 3e-3, weight_decay=0.01)
    for _ in range(300):
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(probe(columns), targets).backward()
        optimiser.step()
    return probe.eval()


def fine_tune(model, probe: nn.Module, audio: torch.Tensor, targets: torch.Tensor, epochs: int, lr: float) -> None:
    """AdamW on clips that are shifted in time, by whole columns, and louder or softer."""
    model.encoder.requires_grad_(True).train()
    optimiser = torch.optim.AdamW([*model.encoder.parameters(), *probe.parameters()], lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, epochs * -(-len(audio) // 8), pct_start=0.1)
    for batch in (batch for _ in range(epochs) for batch in torch.randperm(len(audio)).split(8)):
        shift = int(torch.randint(targets.shape[1], ()))
        sound = audio[batch].roll(shift * model.grid.patch_frames * model.grid.hop_length, 1)
        predicted = probe(model.columns(sound * 10 ** torch.empty(len(batch), 1).uniform_(-0.4, 0.2)).flatten(0, 1))
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(predicted, targets[batch].roll(shift, 1).flatten(0, 1)).backward()
        optimiser.step()
        schedule.step()
    model.encoder.requires_grad_(False).eval()


def main(task_folder: str, out: str, model_file_path: str = "", epochs: int = 30) -> tuple[float, float]:
    torch.manual_seed(0)
    task, model = read_task(task_folder), hear_jepa.load_model(model_file_path)
    (audio, targets), (test, truth) = read_splits(model, task, "train", "valid"), read_splits(model, task, "test")
    probe, scores = fit_probe(model.columns(audio).flatten(0, 1), targets.flatten(0, 1)), []
    for train in (lambda: None, lambda: fine_tune(model, probe, audio, targets, epochs, lr=3e-4)):
        train()
        with torch.no_grad():
            predicted = probe(model.columns(test).flatten(0, 1))
        scores.append(mean_average_precision(predicted.numpy(), truth.flatten(0, 1).numpy()))
    print(f"mean average precision on the test split: {scores[0]:.3f} frozen, {scores[1]:.3f} fine-tuned")
    new = {"weights": model.encoder.state_dict(), "whitening": None, "provenance": {"fine_tuned_on": task.name}}
    save_checkpoint(out, replace(named_checkpoint(model_file_path), **new))
    return scores[0], scores[1]


if __name__ == "__main__":
    main(*sys.argv[1:])
