"""What only a GPU can show. The other files of this folder run there as well, compiled."""

from __future__ import annotations

import pytest
import torch
import triton_mode  # noqa: F401

import fastdml.functional as F

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def batch(n, d, dtype, classes=None):
    g = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(n, d, device="cuda", generator=g).to(dtype)
    y = torch.randint(0, classes or max(1, n // 4), (n,), device="cuda", generator=g)
    return x, y


def gradient(backend, x, y, **options):
    a = x.clone().requires_grad_()
    value = F.multi_similarity(a, y, epsilon=0.1, backend=backend, **options)
    value.backward()
    return value.detach().double(), a.grad.double()


@pytest.mark.parametrize("d", [32, 64, 96, 128, 256, 384, 512, 768])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_large_batch_against_float64(dtype, d):
    """Thousands of rows: every processor, several splits, ragged ends."""
    x, y = batch(4099, d, dtype)
    truth, exact = gradient("dense", x.double(), y)
    plain, theirs = gradient("dense", x, y)
    found, mine = gradient("triton", x, y)
    eps = torch.finfo(dtype).eps
    scale = exact.abs().max()
    assert (found - truth).abs() <= 2 * (plain - truth).abs() + 2 * eps * truth.abs()
    assert (mine - exact).abs().max() <= 2 * (theirs - exact).abs().max() + 2 * eps * scale


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_float32_follows_torch(precision):
    before = torch.get_float32_matmul_precision()
    x, y = batch(1027, 128, torch.float32)
    _, exact = gradient("dense", x.double(), y)
    try:
        torch.set_float32_matmul_precision(precision)
        _, mine = gradient("triton", x, y)
    finally:
        torch.set_float32_matmul_precision(before)
    share = 1e-5 if precision == "highest" else 5e-2
    assert (mine - exact).abs().max() <= share * exact.abs().max()


def test_bits_repeat():
    x, y = batch(8192, 128, torch.bfloat16)
    first = gradient("triton", x, y)
    for _ in range(100):
        again = gradient("triton", x, y)
        assert torch.equal(first[1], again[1]) and torch.equal(first[0], again[0])


def test_no_synchronisation():
    x, y = batch(2048, 128, torch.bfloat16)
    a = x.clone().requires_grad_()
    F.multi_similarity(a, y, epsilon=0.1, backend="triton").backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        F.multi_similarity(a, y, epsilon=0.1, backend="triton").backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_is_linear():
    """262,144 rows in under 2 GiB beyond inputs and gradients; the matrix would be 128 GiB."""
    x, y = batch(262144, 128, torch.bfloat16)
    a = x.requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    F.multi_similarity(a, y, epsilon=0.1, backend="triton").backward()
    torch.cuda.synchronize()
    used = torch.cuda.max_memory_allocated() - before - a.grad.nbytes
    assert torch.isfinite(a.grad).all()
    assert used < 2 << 30


def test_compiled_whole():
    x, y = batch(515, 64, torch.float32)

    def loss(a):
        return F.multi_similarity(a, y, epsilon=0.1, backend="triton")

    eager, compiled = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss(eager).backward()
    torch.compile(loss, fullgraph=True)(compiled).backward()
    torch.testing.assert_close(compiled.grad, eager.grad)


def test_many_classes():
    x, _ = batch(512, 128, torch.bfloat16)
    y = torch.randint(0, 100_000, (512,), device="cuda")
    proxies, _ = batch(100_000, 128, torch.bfloat16)
    grads = {}
    for backend in ("chunked", "triton"):
        a, p = x.clone().requires_grad_(), proxies.clone().requires_grad_()
        F.proxy_anchor(a, y, p, backend=backend).backward()
        grads[backend] = (a.grad.float(), p.grad.float())
    for mine, theirs in zip(grads["triton"], grads["chunked"]):
        assert (mine - theirs).abs().max() <= 2e-2 * theirs.abs().max()
