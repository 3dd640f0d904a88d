"""Run as a script, outside the interpreter: compiles one loss and prints its kernels as JSON."""

import dataclasses
import json
import sys

import torch

from fastdml.bench import tile_functors
from fastdml.kernels import aot

if __name__ == "__main__":
    name, arch, dtype, d = (
        sys.argv[1],
        int(sys.argv[2]),
        getattr(torch, sys.argv[3]),
        int(sys.argv[4]),
    )
    found = aot.kernels(tile_functors.example(name), arch, dtype, d, *sys.argv[5:])
    print(json.dumps({kernel: dataclasses.asdict(compiled) for kernel, compiled in found}))
