"""What importing costs and needs, and life without a compiler."""

import pytest
from conftest import needs_compiled, python

WITHOUT = "import sys; sys.modules['fastdml._C'] = None\n"


def test_import_is_quick():
    """Processor time beyond torch's own, least of three processes, the first of which may have to compile
    the modules; 0.19 s when this was last looked at, of which the collector of garbage has the half."""
    code = (
        "import time, torch; start = time.process_time(); import fastdml; "
        "print(time.process_time() - start)"
    )
    found = [float(python(code, PYTHONDONTWRITEBYTECODE="")) for _ in range(3)]
    assert min(found) < 0.3


def test_import_loads_nothing_heavy():
    code = """
import sys, torch
before = set(sys.modules)
import fastdml
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new & {"triton", "matplotlib", "rich", "pytorch_metric_learning", "sklearn", "scipy"}))
# What stands in for other libraries needs none of them, where it can.
import fastdml.integrations.open_clip, fastdml.integrations.transformers
new = {name.partition(".")[0] for name in set(sys.modules) - before}
trainers = {"sentence_transformers", "lightning", "transformers", "accelerate", "datasets"}
print(*sorted(new & {*trainers, "open_clip", "timm", "torchvision", "pytorch_metric_learning"}))
"""
    assert python(code).split() == []


def test_a_loss_on_the_cpu_loads_no_triton():
    code = """
import sys, torch
before = "triton" in sys.modules
import fastdml
x = torch.randn(8, 4, requires_grad=True)
fastdml.losses.MultiSimilarityLoss()(x, torch.arange(8) // 2).backward()
print(before or "triton" not in sys.modules)
"""
    assert python(code).strip() == "True"


def test_pure_python_runs_with_one_notice():
    """The same numbers through the chunked executor, and the reason said once."""
    code = """
import warnings, torch, fastdml
torch.manual_seed(0)
x, y = torch.randn(20, 6, requires_grad=True), torch.arange(20) // 4
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    values = []
    for loss in (fastdml.losses.MultiSimilarityLoss(epsilon=0.1), fastdml.losses.SmoothAPLoss(),
                 fastdml.losses.SmoothAPLoss()):
        value = loss(x, y)
        value.backward()
        values.append(value.item())
    proxies = torch.randn(5, 6)
    values.append(fastdml.functional.proxy_anchor(x, y, proxies).item())
print(len([w for w in caught if "without its compiled kernels" in str(w.message)]))
print(fastdml.build_info()["compiled"], fastdml.explain("smooth_ap", 20).executor)
print(*values, x.grad.abs().sum().item())
"""
    plain, compiled = python(WITHOUT + code).splitlines(), python(code).splitlines()
    assert plain[:2] == ["1", "False chunked"]
    if compiled[1] == "True native":
        assert compiled[0] == "0"
    for a, b in zip(plain[2].split(), compiled[2].split(), strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-5)


@needs_compiled
def test_instruction_set_can_be_chosen_by_the_environment():
    code = "import fastdml; print(fastdml.build_info()['instruction_set'])"
    assert python(code, FASTDML_ISA="baseline").strip() == "baseline"


@needs_compiled
@pytest.mark.parametrize("name", ["bogus", "V4", "", "v3 "])
def test_an_instruction_set_that_does_not_exist_is_refused(name):
    """Not taken for the plainest, which is several times slower."""
    code = """
import torch, fastdml
for use in (fastdml.build_info, lambda: fastdml.losses.SupConLoss()(torch.randn(8, 4), torch.arange(8) // 2)):
    try:
        use()
    except ValueError as error:
        print(error)
"""
    said = python(code, FASTDML_ISA=name).splitlines()
    assert len(said) == 2 and set(said) == {said[0]}
    assert said[0].startswith("FASTDML_ISA: expected one of baseline") and f"got {name!r}" in said[0]


@needs_compiled
def test_build_info():
    import fastdml

    info = fastdml.build_info()
    assert info["compiled"] and info["instruction_set"] in info["instruction_sets"]
    assert {"multi_similarity", "proxy_anchor", "smooth_ap"} <= set(info["functors"])
    assert info["threads"] >= 1 and info["compiler"]


def test_every_module_and_function_is_public():
    import fastdml

    for name in fastdml.losses.__all__:
        assert getattr(fastdml.losses, name).__doc__
    for name in fastdml.functional.__all__:
        assert getattr(fastdml.functional, name).__doc__
    with pytest.raises(AttributeError, match=r"fastdml.functional has no loss 'l2'; it has .*smooth_ap"):
        fastdml.functional.l2  # noqa: B018


def test_workers_of_a_data_loader_may_compute_losses():
    """Forked after the parent has computed on several threads, which they do not have."""
    code = """
import torch, fastdml
from torch.utils.data import DataLoader
torch.set_num_threads(2)

def value(seed):
    x = torch.randn(600, 16, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    found = fastdml.losses.SupConLoss()(x, torch.arange(600) // 3)
    found.backward()
    return torch.stack([found.detach(), x.grad.norm()])

class Mined(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, i): return value(i)

own = [value(i) for i in range(4)]
loaded = list(DataLoader(Mined(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60))
torch.testing.assert_close(loaded, own)
print("equal")
"""
    assert python(code).strip() == "equal"
