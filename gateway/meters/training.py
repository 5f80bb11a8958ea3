"""Trains the shipped zstd dictionary: `python -m gateway.meters.training OUT`.

Trained only on what people wrote for other purposes or for this one: Python's own documentation (the help topics and the
docstrings of the standard library) for ordinary words, and `corpus.txt`, sample answers written for this project, for the
turns of phrase of a chat. Text of a backend in a dictionary would let that backend's later answers point into it for free.

The library differs between Python versions, so the committed file and its digest are the reference, and this is its history.
Measured on 67 answers of SmolLM2 at temperature 0.8 (52,386 bytes, bits a byte): no dictionary 4.13, trained on the
documentation alone 3.20, this one 2.97.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from backports.zstd import ZstdDict, finalize_dict, train_dict

DOCUMENTATION_BYTES = 24 * 1024  # twice as much gains 1 %
TABLES_BYTES_MAX = 2 * 1024  # the entropy tables in front
CORPUS_WEIGHT = 10  # how often a sample answer counts beside a page of documentation when the tables are made
DOCUMENTATION_SAMPLES = 2000
LEVEL = 15  # for which the tables are made: the meter's
SAMPLE_BYTES = 1200  # about one chat answer


def samples() -> Iterator[bytes]:
    """Prose of about `SAMPLE_BYTES` each."""
    library = Path(sysconfig.get_path("stdlib"))
    texts = list(_topics(library / "pydoc_data" / "topics.py"))
    for path in sorted(library.glob("*.py")) + sorted(library.glob("*/*.py")):
        if not {"test", "tests", "site-packages", "idlelib"} & set(path.relative_to(library).parts):
            texts += _docstrings(path)
    paragraph = b""
    for text in texts:
        for block in text.split("\n\n"):
            paragraph += " ".join(block.split()).encode() + b"\n\n"
            if len(paragraph) > SAMPLE_BYTES:
                yield paragraph
                paragraph = b""


def _topics(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def train(samples: list[bytes], *, size_bytes: int) -> bytes:
    """A dictionary of about `size_bytes` from `samples`."""
    return train_dict(samples, size_bytes).dict_content


def dictionary() -> bytes:
    """Documentation first and sample answers last: what is nearest to the text is the cheapest to point to."""
    documentation = list(samples())
    corpus = files("gateway.meters").joinpath("corpus.txt").read_bytes()
    content = train(documentation, size_bytes=DOCUMENTATION_BYTES) + corpus
    answers = corpus.split(b"\n\n")
    return finalize_dict(
        ZstdDict(content, is_raw=True),
        documentation[:DOCUMENTATION_SAMPLES] + answers * CORPUS_WEIGHT,
        len(content) + TABLES_BYTES_MAX,
        LEVEL,
    ).dict_content


def main() -> None:
    """Write the dictionary and print its digest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="where to write the dictionary")
    out: Path = parser.parse_args().out
    data = dictionary()
    out.write_bytes(data)
    sys.stdout.write(f"{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}\n")


if __name__ == "__main__":
    main()
