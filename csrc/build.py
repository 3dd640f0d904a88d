"""Writes and runs the ninja build of the extension.

Every loss header is compiled once per instruction set, from a generated source file of a few lines; the
table of losses is generated from the same list. Headers are those of csrc/rows, and those that losses in
the row language print (fastdml/language/printed.py): what runs for them is written nowhere else. The
sweep of the retrieval metrics (csrc/metrics/kernel.h) is compiled the same way.

Where nvcc is found, every header is compiled for CUDA too, GPU or not: the library loads on any
machine, and uses its CUDA kernels where torch has CUDA. FASTDML_CUDA_ARCH chooses the architectures
(default "80+PTX;90a"). FASTDML_LOSSES="one,another" compiles these losses only; the others run
through the chunked executor. FASTDML_ISAS="v3" compiles these instruction sets only, for a quick
build that stays on this machine.
"""

import dataclasses
import importlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

# name, vector bytes, compiler flags; plainest first. Others than x86-64 get plain C++ with the
# compiler's 16-byte vectors.
X86 = [
    ("baseline", 16, "-march=x86-64"),
    ("v3", 32, "-march=x86-64-v3"),
    ("v4", 64, "-march=x86-64-v4 -mprefer-vector-width=512"),
]
OTHER = [("baseline", 16, "")]

PLAIN = "-std=c++20 -O3 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-psabi -DNDEBUG"
# fp-contract: multiply-adds are fused where the instruction set has them. No code hoisting: in every pass,
# also where a product is in both branches; what an exponent rounds to must not differ between passes. No
# fast-math: infinities and the order of sums have a meaning here.
ROWS = f"{PLAIN} -ffp-contract=fast -fno-code-hoisting -fno-math-errno -fno-trapping-math"

LOSS = re.compile(r"^FASTDML_ROW_LOSS\((\w+), *(\w+)\)", re.M)


def instruction_sets() -> list[tuple[str, int, str]]:
    """(name, vector bytes, flags) of what this processor's family has."""
    return X86 if platform.machine().lower() in ("x86_64", "amd64") else OTHER


def built_sets() -> list[tuple[str, int, str]]:
    """The same, of FASTDML_ISAS if that is set: the build's alone, users' losses are compiled for any."""
    found = instruction_sets()
    if chosen := set(filter(None, os.environ.get("FASTDML_ISAS", "").split(","))):
        names = [name for name, _, _ in found]
        if unknown := chosen - set(names):
            raise SystemExit(
                f"FASTDML_ISAS: expected some of {', '.join(names)}, got {', '.join(sorted(unknown))}"
            )
        found = [isa for isa in found if isa[0] in chosen]
    return found


def headers(root: Path, folder: Path) -> list[Path]:
    """The headers of losses: those written by hand, and those that are printed, into the folder."""
    return [*sorted((root / "csrc" / "rows").glob("*.h")), *printed(root, folder)]


def printed(root: Path, folder: Path) -> list[Path]:
    """Writes the headers of the losses in the row language. Needs torch, but nothing compiled."""
    importable(root)
    import fastdml.losses  # noqa: F401, the losses
    from fastdml.language.printed import headers

    return write_all(folder, headers())


def streamed(root: Path, folder: Path, names: set[str]) -> dict[Path, str]:
    """Writes the streamed forms of losses of these names as headers, and returns the key of each."""
    importable(root)
    from fastdml.language.printed import streams
    from fastdml.losses.one_set import of_defaults

    found = {k: v for k, v in streams(of_defaults()).items() if k.partition("_stream")[0] in names}
    written = write_all(folder, {name: text for name, (_, text) in found.items()})
    return {path: found[path.stem][0] for path in written}


def importable(root: Path) -> None:
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))


def write_all(folder: Path, texts: dict[str, str]) -> list[Path]:
    """Writes headers, by their stems, and removes others."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{stem}.h" for stem in sorted(texts)]
    for path in set(folder.glob("*.h")) - set(written):
        path.unlink()
    for path in written:
        write(path, texts[path.stem])
    return written


def losses(headers: list[Path]) -> list[tuple[str, str, Path]]:
    """(name, functor, header) of every loss, by name; of the headers of FASTDML_LOSSES if that is set."""
    found = []
    for header in headers:
        if header.name == "row.h":
            continue
        found += [(name, functor, header) for name, functor in LOSS.findall(header.read_text())]
    if chosen := set(filter(None, os.environ.get("FASTDML_LOSSES", "").split(","))):
        if unknown := chosen - {name for name, _, _ in found}:
            raise SystemExit(f"FASTDML_LOSSES: no loss is called {', '.join(sorted(unknown))}")
        # A header compiles whole.
        headers = {header for name, _, header in found if name in chosen}
        found = [loss for loss in found if loss[2] in headers]
    return sorted(found)


def write(path: Path, text: str) -> None:
    """Writes a file only when its text changes, so that ninja rebuilds no more than it must."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def word(text: object) -> str:
    """One word of a command in a ninja file: a shell reads the command after ninja has."""
    return shlex.quote(str(text)).replace("$", "$$")


def words(flag: str, *paths: object) -> str:
    return " ".join(word(f"{flag}{path}") for path in paths)


def place(path: Path) -> str:
    """A path in a build line of a ninja file, where no shell is."""
    return re.sub(r"[$ :]", r"$\g<0>", str(path))


def source(folder: Path, stem: str, isa: tuple, *includes: str) -> tuple[Path, str, str]:
    """Writes a source that is compiled for an instruction set; returns (source, isa, flags)."""
    name, width, flags = isa
    path = folder / f"{stem}.{name}.cpp"
    lines = [f"#define FASTDML_ISA {name}", f"#define FASTDML_VECTOR_BYTES {width}"]
    write(path, "\n".join([*lines, *(f'#include "{i}"' for i in includes)]) + "\n")
    return path, name, flags


def generate(folder: Path, headers: list[Path], isas: list) -> list[tuple[Path, str, str]]:
    """Writes the generated sources; returns (source, isa, flags) of each."""
    folder.mkdir(parents=True, exist_ok=True)
    found = losses(headers)
    sources = []
    for header in sorted({h for _, _, h in found}):
        included = "cpu/instantiate.h", f"{header.parent.name}/{header.name}"
        sources += [source(folder, header.stem, isa, *included) for isa in isas]
    sources += [source(folder, "sweep", isa, "metrics/kernel.h") for isa in isas]
    sweeps = [f"extern const SweepKernel sweep_kernel_{isa};" for isa, _, _ in isas]
    pointers = ", ".join(f"&sweep_kernel_{isa}" for isa, _, _ in isas)
    sweeps.append(f"const SweepKernel* const kSweepKernels[] = {{{pointers}}};")
    write(folder / "sweeps.inc", "\n".join(sweeps) + "\n")
    names = ", ".join(f'"{isa}"' for isa, _, _ in isas)
    table = [f"const int kIsaCount = {len(isas)};", f"const char* const kIsa[] = {{{names}}};"]
    for name, _, _ in found:
        kernels = [f"kernel_{name}_{isa}" for isa, _, _ in isas]
        table += [f"extern const Kernel {k};" for k in kernels]
        pointers = ", ".join(f"&{k}" for k in kernels)
        table.append(f"const Kernel* const kernels_{name}[] = {{{pointers}}};")
    entries = ", ".join(f'{{"{name}", kernels_{name}}}' for name, _, _ in found)
    table.append(f"const Functor kFunctors[] = {{{entries}}};")
    table.append(f"const int kFunctorCount = {len(found)};")
    write(folder / "losses.inc", "\n".join(table) + "\n")
    return sources


def generate_streams(
    folder: Path, found: dict[Path, str], isas: list
) -> list[tuple[Path, str, str]]:
    """Writes the generated sources of streamed forms; returns (source, isa, flags) of each.

    The plainest instruction set has none: rows serve processors that have no other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources, declared, entries = [], [], []
    for header, key in found.items():
        included = "cpu/stream_instantiate.h", f"{header.parent.name}/{header.name}"
        forms = []
        for isa in isas:
            if isa[0] == X86[0][0] and len(isas) > 1:
                forms.append("nullptr")
                continue
            sources.append(source(folder, header.stem, isa, *included))
            declared.append(f"extern const Stream stream_{header.stem}_{isa[0]};")
            forms.append(f"&stream_{header.stem}_{isa[0]}")
        declared.append(f"const Stream* const streams_{header.stem}[] = {{{', '.join(forms)}}};")
        entries.append(f'{{"{key}", streams_{header.stem}}}')
    entries.append("{nullptr, nullptr}")  # an array of nothing is none
    declared.append(f"const BuiltStream kStreams[] = {{{', '.join(entries)}}};")
    declared.append(f"const int kStreamCount = {len(found)};")
    write(folder / "streams.inc", "\n".join(declared) + "\n")
    return sources


def uses_lists(header: Path) -> bool:
    """Whether a loss uses lists or arrays, for which CUDA sets shared memory apart.

    Found in its text and in that of the headers beside it which it includes; the row of CUDA refuses
    to compile where this is wrong.
    """
    text = header.read_text()
    if re.search(r"\.(positives|list|array|first|order)\(", text):
        return True
    return any(
        uses_lists(header.parent / name)
        for name in re.findall(r'^#include "(\w+\.h)"', text, re.M)
        if name != "row.h"
    )


def on_distances() -> set[str]:
    """Functors of losses that are on distances of unit vectors unless they are told otherwise: CUDA has
    forms of its own for these, which others need not compile."""
    importable(Path(__file__).resolve().parent.parent)
    import fastdml.losses  # noqa: F401, the losses
    from fastdml.engine.registry import LOSSES
    from fastdml.engine.similarity import DISTANCE

    examples = [found for loss in LOSSES.values() if (found := loss.examples())]
    return {
        one.functor_name
        for first, *others in examples
        if first.metric.kind == DISTANCE and first.metric.normalized
        for one in (first, *others)
        if one.metric == first.metric
    }


@dataclasses.dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit."""

    nvcc: Path
    cudart: Path  # the static runtime library
    arch: str = "80+PTX;90a"

    @staticmethod
    def find() -> "Cuda | None":
        homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
        found = [Path(home) / "bin" / "nvcc" for home in homes if home]
        if on_path := shutil.which("nvcc"):
            found.append(Path(on_path))
        found.append(Path("/usr/local/cuda/bin/nvcc"))
        for nvcc in found:
            if not nvcc.exists():
                continue
            # A wrapper on the path says nothing about where the toolkit is; the usual place does.
            for home in (nvcc.resolve().parent.parent, Path("/usr/local/cuda")):
                for lib in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
                    if (cudart := home / lib / "libcudart_static.a").exists():
                        arch = os.environ.get("FASTDML_CUDA_ARCH") or Cuda.arch
                        return Cuda(nvcc, cudart, arch)
        return None

    def differs(self, torchs: str | None) -> str | None:
        """In words, where the toolkit is of another major version than torch's CUDA."""
        said = subprocess.run([self.nvcc, "--version"], capture_output=True, text=True).stdout
        release = re.search(r"release ((\d+)\.\d+)", said)
        if torchs is None or release is None or release[2] == torchs.partition(".")[0]:
            return None
        return (
            f"fastdml: {self.nvcc} is of CUDA {release[1]}, torch of {torchs}: "
            "a driver that is new enough for torch may refuse the kernels"
        )

    def flags(self) -> str:
        codes = []
        for arch in self.arch.replace(",", ";").split(";"):
            number, _, ptx = arch.partition("+")
            code = f"sm_{number},compute_{number}" if ptx else f"sm_{number}"
            codes.append(f"-gencode=arch=compute_{number},code=[{code}]")
        host = "-fPIC,-fvisibility=hidden,-O2"
        return f"-std=c++20 -O3 -DNDEBUG -Xcompiler={host} {' '.join(codes)}"

    def libraries(self) -> str:
        # Static, and its symbols kept to ourselves: torch brings a runtime of its own.
        return f"{word(self.cudart)} -Wl,--exclude-libs,{self.cudart.name} -lrt -lpthread -ldl"


def generate_cuda(folder: Path, headers: list[Path]) -> list[Path]:
    """Writes the generated CUDA sources; returns them."""
    found = losses(headers)
    distances = on_distances()
    sources = []
    for header in sorted({h for _, _, h in found}):
        source = folder / f"{header.stem}.cuda.cu"
        forms = any(name in distances for name, _, h in found if h == header)
        write(
            source,
            f"#define FASTDML_ISA cuda\n#define FASTDML_LISTS {int(uses_lists(header))}\n"
            f"#define FASTDML_DISTANCES {int(forms)}\n"
            f'#include "cuda/instantiate.cuh"\n#include "{header.parent.name}/{header.name}"\n',
        )
        sources.append(source)
    table = [f"extern const CudaKernel cuda_kernel_{name};" for name, _, _ in found]
    entries = ", ".join(f"&cuda_kernel_{name}" for name, _, _ in found)
    table.append(f"const CudaKernel* const kCudaKernels[] = {{{entries}}};")
    write(folder / "losses_cuda.inc", "\n".join(table) + "\n")
    return sources


def build(root: Path, work: Path, target: Path, mode: str = "auto") -> None:
    """Compiles csrc into `target`. `mode` is FASTDML_BUILD: auto, cpu or cuda."""
    cuda = None if mode == "cpu" else Cuda.find()
    if mode == "cuda" and cuda is None:
        raise SystemExit("FASTDML_BUILD=cuda: no CUDA toolkit with nvcc was found")
    if cuda is not None and (warning := cuda.differs(importlib.import_module("torch").version.cuda)):
        print(warning, file=sys.stderr)
    try:
        compile_all(root, work, target, cuda)
    except subprocess.CalledProcessError:
        if mode == "cuda" or cuda is None:
            raise
        # A toolkit that does not get along with this compiler must not cost the CPU its kernels.
        print("fastdml: the build with CUDA failed; trying without", file=sys.stderr)
        compile_all(root, work, target, None)


def compile_all(root: Path, work: Path, target: Path, cuda: Cuda | None) -> None:
    import pybind11
    import torch
    from torch.utils import cpp_extension

    work.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    csrc, made = root / "csrc", work / "generated"
    isas = built_sets()
    found = headers(root, work / "printed")
    generated = generate(made, found, isas)
    names = {name for name, _, _ in losses(found)}
    generated += generate_streams(made, streamed(root, work / "streamed", names), isas)

    given = os.environ.get("CXX")  # a command, such as one with a launcher before it
    compiler = given or word(shutil.which("c++") or shutil.which("g++") or "c++")
    rows = f"{ROWS} {words('-I', csrc, work, made)}"
    torch_includes = " ".join(f"-isystem {word(p)}" for p in cpp_extension.include_paths())
    # Stable ABI of the oldest torch that is supported: 2.10.
    torch_flags = f"{PLAIN} {torch_includes} -DTORCH_TARGET_VERSION=0x020a000000000000 {words('-I', csrc)}"
    python = sysconfig.get_paths()["include"]
    python_flags = f"{PLAIN} {words('-I', pybind11.get_include(), python, csrc)}"

    if cuda is not None:
        python_flags += " -DFASTDML_WITH_CUDA"

    edges = [(source, f"{rows} {flags}") for source, _, flags in generated]
    edges += [
        (csrc / "cpu" / "registry.cpp", rows),
        (csrc / "cpu" / "class_index.cpp", rows),
        (csrc / "cpu" / "differences.cpp", rows),
        (csrc / "ops.cpp", torch_flags),
        (csrc / "one_block.cpp", torch_flags),
        (csrc / "listed.cpp", f"{torch_flags} -fno-math-errno"),
        (csrc / "swapped.cpp", f"{torch_flags} -fno-trapping-math"),
        (csrc / "metrics" / "state.cpp", f"{torch_flags} {words('-I', made)}"),
        (csrc / "metrics" / "python.cpp", python_flags),
        (csrc / "stream.cpp", torch_flags),
        (csrc / "module.cpp", python_flags),
    ]
    lib = Path(torch.__file__).parent / "lib"
    link = f"-shared {words('-L', lib)} -ltorch_cpu -lc10 -Wl,--as-needed"
    device_edges = []
    if cuda is not None:
        # nvcc takes a compiler alone.
        host = word(shlex.split(given)[-1]) if given else compiler
        device_flags = f"{cuda.flags()} -ccbin {host} {words('-I', csrc, work)}"
        sources = generate_cuda(made, found)
        sources += [csrc / "cuda" / "sort.cu", csrc / "cuda" / "radial.cu"]
        device_edges = [(source, device_flags) for source in sources]
        edges += [
            (csrc / "cuda" / "ops_cuda.cpp", torch_flags),
            (csrc / "cuda" / "table.cpp", rows),
        ]
        link += f" {cuda.libraries()}"

    lines = [
        f"cxx = {compiler}",
        "rule compile",
        "  command = $cxx -MMD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $in",
        f"nvcc = {word(cuda.nvcc if cuda else 'nvcc')}",
        "rule compile_cuda",
        "  command = $nvcc -MMD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $in",
        "rule link",
        "  command = $cxx $in $flags -o $out",
        "  description = link $out",
    ]
    objects = []
    for rule, some in (("compile_cuda", device_edges), ("compile", edges)):
        for source, flags in some:  # the slowest first
            obj = work / f"{source.stem}.o"
            lines += [f"build {place(obj)}: {rule} {place(source)}", f"  flags = {flags}"]
            objects.append(place(obj))
    lines += [f"build {place(target)}: link {' '.join(objects)}", f"  flags = {link}"]
    write(work / "build.ninja", "\n".join(lines) + "\n")

    command = [sys.executable, "-m", "ninja", "-C", str(work)]
    if jobs := os.environ.get("MAX_JOBS"):
        command += ["-j", jobs]
    subprocess.run(command, check=True)
