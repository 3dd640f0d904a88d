"""Nothing grows with the product of queries and gallery, in a process of its own."""

import os
import subprocess
import sys
import textwrap

import pytest
from conftest import COMPILED

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc/self/status")

MEASURE = """
import threading
import numpy as np
from fastdml.metrics import evaluate

def own():
    with open("/proc/self/status") as lines:
        return next(int(l.split()[1]) for l in lines if l.startswith("RssAnon")) << 10

def peak(work):
    before, most, done = own(), [0], threading.Event()
    def watch():
        while not done.wait(0.001):
            most[0] = max(most[0], own())
    thread = threading.Thread(target=watch)
    thread.start()
    work()
    done.set()
    thread.join()
    return max(most[0] - before, 0) >> 20

rng = np.random.default_rng(0)
def data(n, classes):
    return rng.standard_normal((n, 16), dtype=np.float32), rng.integers(0, classes, n)
names = ("recall", "map", "ndcg", "auc", "uniformity", "alignment")
x, y = data(500, 100)
evaluate(x, y, metrics=names)
"""

# (what to measure, MiB it may take)
CASES = {
    # 8,000 x 8,000 scores are 244 MiB.
    "one set": (
        "x, y = data(8000, 2000)\nprint(peak(lambda: evaluate(x, y, metrics=names, neighbours=20)))",
        48,
    ),
    "large classes": ("x, y = data(8000, 20)\nprint(peak(lambda: evaluate(x, y, metrics=names)))", 100),
    # A matrix of all pairs is 61 MiB of marks, 244 of gains.
    "a function": (
        """
        x, y = data(8000, 2000)
        same = lambda i, j: y[i.numpy()][:, None] == y[j.numpy()]
        print(peak(lambda: evaluate(x, relevance=same, metrics=("map", "ndcg"))))
        """,
        80,
    ),
    # The gallery is 38 MiB in the file, 76 in float32.
    "mapped": (
        """
        import tempfile
        with tempfile.TemporaryDirectory() as folder:
            big = np.lib.format.open_memmap(folder + "/g.npy", "w+", np.float16, (150000, 128))
            for part in range(0, 150000, 10000):
                big[part : part + 10000] = rng.standard_normal((10000, 128), dtype=np.float32)
            labels = rng.integers(0, 20000, 150000)
            gallery = np.load(folder + "/g.npy", mmap_mode="r")
            given = np.array(gallery[:100]), labels[:100], gallery, labels
            print(peak(lambda: evaluate(*given, metrics=names, own_index=np.arange(100))))
        """,
        32,
    ),
}


@pytest.mark.skipif(not COMPILED, reason="bounds of the compiled sweep")
@pytest.mark.parametrize("case", CASES)
def test_own_memory_is_bounded(case):
    code, bound = CASES[case]
    script = MEASURE + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= bound
