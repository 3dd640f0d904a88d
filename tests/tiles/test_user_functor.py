"""The documented example runs as printed, and its gradient is right."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from triton_mode import DEVICE

DOCUMENT = Path(__file__).parents[2] / "docs" / "triton-functors.md"


def test_example(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)[1]
    # Triton reads the source of its functions from a file.
    functions, call = code.split("b, m = ")
    (tmp_path / "lifted_example.py").write_text(functions)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = vars(__import__("lifted_example")).copy()
    g = torch.Generator().manual_seed(0)
    x = torch.randn(41, 20, generator=g).to(DEVICE)
    labels = torch.randint(0, 6, (41,), generator=g).to(DEVICE)
    names.update(x=x, labels=labels)
    exec("b, m = " + call, names)

    a = x.double().requires_grad_()
    u = a / a.norm(dim=1, keepdim=True)
    s = 10 * u @ u.t()
    positive = labels[:, None] == labels[None]
    own = torch.eye(41, dtype=torch.bool, device=DEVICE)
    pull = (-s).masked_fill(~positive | own, -torch.inf).logsumexp(1)
    truth = (s.masked_fill(positive, -torch.inf).logsumexp(1) + pull + 0.5).relu().mean()
    torch.testing.assert_close(names["loss"].double(), truth, rtol=1e-5, atol=0)
    (exact,) = torch.autograd.grad(truth, a)
    d = names["result"].d_anchors
    d = d - (d * x).sum(1, keepdim=True) / x.square().sum(1, keepdim=True) * x
    torch.testing.assert_close(d.double(), exact, rtol=0, atol=1e-5 * exact.abs().max().item())
