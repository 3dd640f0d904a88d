"""Short texts that are there anyway: nothing is fetched.

They are what functions of Python's own library are called and what they say they do; or, where Debian's
package wordnet-base is installed, words and what they mean.
"""

import ast
import re
import sysconfig
from pathlib import Path

LIBRARY = Path(sysconfig.get_path("stdlib"))
WORDNET = Path("/usr/share/wordnet/data.noun")


def functions(count, most=40):
    """(module, name in words, what is said of it first) of functions and classes, `most` a module."""
    found = []
    for path in sorted(LIBRARY.glob("[a-z]*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8", errors="replace")))
        known = [n for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(n)]
        for node in known[:most]:
            said = re.split(r"\.\s|\n\n", ast.get_docstring(node))[0]
            name = re.sub(r"(?<=[a-z])(?=[A-Z])|_+", " ", node.name).strip().lower()
            found.append((path.stem, f"{path.stem} {name}", " ".join(said.split())))
        if len(found) >= count:
            break
    return found[:count]


def glosses(path, count):
    """(word, what it means) of a file of WordNet's data."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if " | " in line]
    halves = (line.split(" | ") for line in lines[:count])
    return [(facts.split()[4].replace("_", " "), gloss.split(";")[0].strip()) for facts, gloss in halves]


def pairs(count):
    """(question, answer): what belongs together."""
    if WORDNET.exists():
        return glosses(WORDNET, count)
    return [found[1:] for found in functions(count)]
