"""What hear-eval-kit 2021.1.3 and hear-validator need on today's Python, with no line of theirs changed.

Python imports this file at its start where this folder is on PYTHONPATH; it acts in their processes alone:

    export PYTHONPATH=$(python -m hear_jepa.evaluation.hear_eval_kit)

* TensorFlow, which they import only to ask whether a model is a `tf.Module`, is a stub where it is not installed.
* Lightning dropped the setter of `FitLoop.current_epoch` in 1.6; heareval sets it before it tests an event task.
* `torch.load` refuses heareval's own checkpoints, which hold its settings, unless asked to.
"""

import importlib.machinery
import importlib.util
import os
import sys
import types


def stub_tensorflow():
    """A module that owns no model and sees whatever GPU torch sees."""
    stub = types.ModuleType("tensorflow")
    stub.__spec__ = importlib.machinery.ModuleSpec("tensorflow", None)  # other libraries look whether it is there
    vars(stub)["Module"] = type("Module", (), {})
    vars(stub)["test"] = types.SimpleNamespace(is_gpu_available=lambda **kwargs: True)
    sys.modules["tensorflow"] = stub


def restore_current_epoch_setter():
    """`trainer.fit_loop.current_epoch = epoch` sets the number of completed epochs, as before Lightning 1.6."""
    from pytorch_lightning.loops.fit_loop import FitLoop

    def get(loop):
        return loop.epoch_progress.current.completed

    def set_(loop, epoch):
        loop.epoch_progress.current.completed = epoch

    setattr(FitLoop, "current_epoch", property(get, set_))  # noqa: B010


command = " ".join(sys.orig_argv)
if "heareval." in command or "hear-validator" in command or "hearvalidator" in command:
    if "heareval.predictions" in command:  # imports no TensorFlow
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
        restore_current_epoch_setter()
    elif importlib.util.find_spec("tensorflow") is None:
        stub_tensorflow()
