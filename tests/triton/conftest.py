"""Without a GPU the kernels run in Triton's interpreter, which is chosen before triton is imported."""

import importlib.util
import os

import torch

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
elif not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
