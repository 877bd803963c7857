"""The documents as a test sees them: blocks with their marks, commands, names of files, links.

A mark is a comment on the line before a fenced block, and nothing that a reader sees:

    <!-- runs: NAME -->      run by the slow test, with all blocks of NAME, as one bash script
    <!-- needs: WHAT -->     needs what no test machine has; its commands are still parsed
    <!-- shows -->           a text block: the block run before it must print this
    <!-- sample -->          a text block that no test prints

After NAME may stand `exit N` (the code that its last line must end with), `timeout SECONDS`,
`writes FILE` (a block that is no bash: it becomes this file) and `serves URL` (it is left running,
and what follows waits until the URL answers). Leaves out running them (`tests/scratch.py`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.conftest import ROOT

PATTERNS = ("README.md", "docs/*.md", "deploy/**/README.md", "grids/PLUGINS.md", "CONTRIBUTING.md",
            "CHANGELOG.md")  # fmt: skip
MARK = re.compile(r"<!--\s*(runs|needs|shows|sample)\b:?\s*(.*?)\s*-->\s*$", re.S)
WORDS = {"exit": r"\d+", "timeout": r"\d+", "writes": r"[\w./-]+", "serves": r"http\S+"}
TIMEOUT = 120
MARKED = ("bash", "sh", "console", "shell")  # all blocks of these must say whether they run
# What may stand before a command's own name.
BEFORE = {"time", "exec", "nohup", "sudo", "env", "do", "then", "else", "!", "{", "(", "srun"}
HERE = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?")
SEPARATORS = re.compile(r"[();<>|&\n]+")


class BadMark(Exception):
    """A mark that says nothing that the tests understand."""


@dataclass(frozen=True)
class Mark:
    """What stands before a block.

    Attributes:
        kind: runs, needs, shows or sample.
        name: of the script that the block belongs to; what is needed.
    """

    kind: str
    name: str = ""
    exit: int = 0
    timeout: int = TIMEOUT
    writes: str = ""
    serves: str = ""


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    path: Path
    line: int
    language: str
    text: str
    mark: Mark | None

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


@dataclass
class Document:
    """What one document holds; `links` and `images` are targets, `code` is what stands inline."""

    path: Path
    blocks: list[Block] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    headings: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))


def paths() -> list[Path]:
    return [path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))]


@cache
def read(path: Path) -> Document:
    """Parse a document. Raises `BadMark`."""
    made = Document(path)
    tokens = MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))
    comment = ""
    for token, after in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "fence":
            where = f"{made}:{token.map[0] + 1 if token.map else 0}"
            mark, language = mark_of(comment, where), (token.info.split() or [""])[0]
            line = token.map[0] + 1 if token.map else 0
            made.blocks.append(Block(path, line, language, token.content, mark))
        elif token.type == "inline":
            _take_inline(made, token)
        elif token.type == "heading_open" and after is not None:
            made.headings.add(_slug(after, made.headings))
        comment = token.content if token.type == "html_block" else ""
    return made


def _take_inline(made: Document, token: Token) -> None:
    for child in token.children or []:
        if child.type == "code_inline":
            made.code.append(child.content)
        elif child.type == "link_open":
            made.links.append(str(child.attrs["href"]))
        elif child.type == "image":
            made.images.append(str(child.attrs["src"]))


def _slug(heading: Token, taken: set[str]) -> str:
    """The anchor that a heading gets where Markdown is shown in a browser."""
    text = "".join(child.content for child in heading.children or [])
    slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
    numbered = (f"{slug}-{number}" for number in range(1, 100))
    return slug if slug not in taken else next(one for one in numbered if one not in taken)


def mark_of(comment: str, where: str) -> Mark | None:
    """The mark in the last line of a comment, or None. Raises `BadMark`."""
    found = MARK.search(comment.strip().rpartition("\n")[2])
    if found is None:
        return None
    kind, rest = found[1], found[2]
    if kind != "runs":
        if kind == "needs" and not rest:
            raise BadMark(f"{where}: `needs:` does not say what")
        return Mark(kind, rest)
    name, *words = rest.split() or [""]
    given = dict(zip(words[::2], words[1::2], strict=False))
    wrong = [word for word, value in given.items() if not re.fullmatch(WORDS.get(word, "-"), value)]
    if not re.fullmatch(r"[\w-]+", name) or len(words) % 2 or wrong:
        allowed = ", ".join(f"{word} VALUE" for word in WORDS)
        raise BadMark(f"{where}: runs: {rest!r}; expected a name, then any of {allowed}")
    exit_code, timeout = int(given.get("exit", 0)), int(given.get("timeout", TIMEOUT))
    return Mark(kind, name, exit_code, timeout, given.get("writes", ""), given.get("serves", ""))


def scripts() -> dict[str, list[Block]]:
    """The blocks of each name that is run, in the documents' order, with what they must show."""
    made: dict[str, list[Block]] = {}
    for path in paths():
        name = None
        for block in read(path).blocks:
            if block.mark is None or block.mark.kind in ("needs", "sample"):
                continue
            if block.mark.kind == "runs":
                name = block.mark.name
            if name is None:
                raise BadMark(f"{block}: `shows`, but no block that runs stands before it")
            made.setdefault(name, []).append(block)
    return made


# ---- commands


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a bash text, as words; bodies of here-documents are left out."""
    for line in _lines(text):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not SEPARATORS.fullmatch(word):
                words.append(word)
            elif set(word) & set("<>"):
                words.append(">")  # what follows is a file
            elif kept := _bare(words):
                yield kept
            if SEPARATORS.fullmatch(word) and not set(word) & set("<>"):
                words = []


def _lines(text: str) -> Iterator[str]:
    """Whole lines: those that are continued in one, without here-documents."""
    until = None
    for line in text.replace("\\\n", " ").splitlines():
        if until is not None:
            until = None if line.strip() == until else until
            continue
        if (opened := HERE.search(line)) is not None:
            until, line = opened[1], line[: opened.start()] + line[opened.end() :]
        line = re.sub(r"\d?>&\d", "", line)
        yield line.replace("$(", " ( ").replace("`", " ; ")


def _bare(words: list[str]) -> list[str]:
    """A command without redirections, assignments and what may stand before it."""
    kept = [word for word, before in zip(words, ["", *words], strict=False) if before != ">"]
    kept = [word for word in kept if word != ">"]
    while kept and (kept[0] in BEFORE or re.match(r"\w+=", kept[0])):
        kept.pop(0)
    return kept


def called(program: str, words: list[str], known: set[str]) -> list[str] | None:
    """The arguments of `program` in a command, which may be another that runs it; or None."""
    for at, word in enumerate(words):
        before = words[at - 1] if at else "--"
        if word.rpartition("/")[2] != program or (before != "--" and before.startswith("-")):
            continue
        arguments = words[at + 1 :]
        runs_another = arguments and {"exec", "run", "symmetric-run"} & set(words[:at])
        if before == "--" or runs_another or (arguments and arguments[0] in known):
            return arguments
    return None
