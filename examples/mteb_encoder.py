"""hear_jepa on MTEB's audio tasks: mteb.evaluate(HearJepa(), mteb.get_tasks(modalities=["audio"])).

pip install 'mteb[audio]'
"""

import torch
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.modality_collators import AudioCollator

import hear_jepa


class HearJepa(AbsEncoder):
    """One scene embedding a clip."""

    def __init__(self, model_name: str = "", revision: str | None = None, device: str | None = None, **options):
        self.model = hear_jepa.load_model(model_name, **options).to(device or "cpu")
        self.mteb_model_meta = ModelMeta.create_empty({"name": "hear_jepa/tiny", "modalities": ["audio"]})

    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, **kwargs):
        inputs.collate_fn = AudioCollator(target_sampling_rate=self.model.sample_rate)
        clips = [torch.as_tensor(clip["array"]).float() for batch in inputs for clip in batch["audio"]]
        return self.model.scenes([clip.mean(0) if clip.dim() == 2 else clip for clip in clips]).cpu()
