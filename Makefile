# Two commands need nothing before them: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# Losses to train with, and multi-similarity beside them; empty: that, Proxy-Anchor and Smooth-AP.
LOSS ?=
# Named exactly: a range would fetch a build with several gigabytes of CUDA packages.
TORCH ?= torch==2.13.0
TORCHVISION ?= torchvision==0.28.0
OPEN_CLIP ?= open_clip_torch==3.3.0 ftfy==6.3.1 wcwidth
# The demo and the tests run on the CPU; `make FASTDML_BUILD=auto ...` compiles for CUDA where nvcc is found.
export FASTDML_BUILD ?= cpu

# Releases of torch that `make test-oldest` compiles against: the oldest that pyproject.toml claims, and
# the one that GPU machines had when this was written.
OLDEST ?= 2.10.0 2.11.0
OLDEST_TRITON ?= 3.6.0

.PHONY: demo test test-oldest mutants lint bench leaderboard gpu-check docs setup clean

# A virtual environment with torch (the one already installed there, or $(TORCH)), the build tools and
# this package, compiled and editable. Rerun when what it installs changes. open_clip comes without what it asks
# for: torchvision from PyPI is compiled for CUDA, and beside a torch without, nothing that looks for it could be
# imported. It lies where the tests of open_clip alone find it, who need no more of it than its Python.
$(VENV)/.ready: pyproject.toml setup.py csrc/build.py
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -c "import torch" 2>/dev/null || $(PY) -m pip install --quiet "$(TORCH)"
	$(PY) -m pip install --quiet "setuptools>=77" wheel "ninja" "pybind11>=2.13" numpy
	FASTDML_BUILD=none $(PY) -m pip install --quiet --no-build-isolation --editable ".[test,demo,integrations]"
	$(PY) -m pip install --quiet --no-deps $(OPEN_CLIP)
	$(PY) -m pip install --quiet --no-deps --upgrade --target $(VENV)/beside $(TORCHVISION)
	touch $@

# Compiles what changed in csrc, in place.
setup: $(VENV)/.ready
	$(PY) setup.py --quiet build_ext --inplace

demo: setup
	$(PY) -m fastdml demo $(foreach loss,$(LOSS) $(if $(LOSS),multi_similarity),--loss $(loss))

# One thread a worker, and a worker a core: the tests that are about threads set their number.
# Triton's are a run of their own: whether it interprets is settled when it is imported.
test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto -m "not slow" tests/tiles

# Plants faults in a copy of the tree, one at a time, and reports the share that the tests notice. An
# interrupted run goes on where it was; MUTANTS="--sample 40" and the like: tests/mutants/run.py.
MUTANTS ?=
mutants: setup
	$(PY) tests/mutants/run.py $(MUTANTS)

# Against the headers of older torch and with the oldest Triton, which are fetched once (800 MB).
test-oldest: setup
	$(PY) tests/oldest/fetch.py build/oldest $(OLDEST) --triton $(OLDEST_TRITON)
	$(PY) -m pytest tests/oldest

lint: setup
	$(VENV)/bin/ruff check .
	$(PY) tests/mutants/run.py --check
	$(PY) -m mypy fastdml

bench: setup
	$(PY) benchmarks/bench.py --preset issue

# Every loss and method at equal budget on real images; hours, resumable. MINUTES bounds it; see --help.
MINUTES ?= inf
leaderboard: setup
	$(PY) benchmarks/leaderboard.py --minutes $(MINUTES)

# On a machine with a CUDA device, with the python that has its torch; nothing is fetched.
OUT ?= gpu-check
STAGES ?= build,first,test,sanitize,bench
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py "$(OUT)" --stages "$(STAGES)"

docs: setup
	$(PY) docs/make_tables.py
	$(PY) docs/make_stub.py
	$(PY) docs/make_scaling.py

clean:
	rm -rf build dist *.egg-info fastdml/_C*.so $(VENV)
