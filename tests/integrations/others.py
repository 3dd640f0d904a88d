"""To be imported first: other libraries as they come from their packages, without a hub, and the folder of
the examples, whose texts and networks the tests use.

Every worker of a test run collects all tests, and few run these: what is heavy is imported when asked for.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

import torch

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "integrations"))
# torchvision, which `make setup` keeps where nobody else finds it.
BESIDE = Path(sys.prefix) / "beside"


class Lazy:
    """A module, imported when something of it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> object:
        return getattr(importlib.import_module(self._name), name)


def open_clip() -> None:
    """Makes open_clip importable.

    torchvision from PyPI is compiled for CUDA. Where torch is not, its library of operators cannot be loaded,
    and its import fails on two of them that it describes all the same: they are declared here. Nothing of
    torchvision runs in these tests but what is Python.
    """
    if "torchvision" in sys.modules:
        return
    if BESIDE.exists():
        sys.path.append(str(BESIDE))
    found = importlib.util.find_spec("torchvision")
    assert found is not None and found.origin is not None, "torchvision is not installed: make setup"
    try:
        torch.ops.load_library(str(next(Path(found.origin).parent.glob("_C*.so"))))
    except OSError:
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
    importlib.import_module("torchvision")
