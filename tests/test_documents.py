"""What the documents show is true: commands, options, paths, links, grids; and blocks that run."""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from grids import load_grid
from grids.errors import InputError
from orchestrator.cli import app
from tests import scratch
from tests.conftest import ROOT
from tests.documents import (
    MARKED,
    BadMark,
    Block,
    Document,
    called,
    commands,
    mark_of,
    paths,
    read,
    scripts,
)

DOCUMENTS = [read(path) for path in paths()]
GROUP: Any = typer.main.get_command(app)
COMMANDS: set[str] = set(GROUP.commands)
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
FOLDERS = ("analysis", "deploy", "docs", "grids", "orchestrator", "tests", "workers")
KEYS = set(json.loads((ROOT / "grids" / "schema.json").read_text())["properties"])
# What a document that shows some keys alone leaves unsaid.
PART = {
    "name": "part", "study": "part", "seeds": [0],
    "base": {"rounds": 60, "batch": 8, "eval": {"every": 20}},
    "axes": {
        "model": ["tiny-qwen2", "tiny-llama"], "dataset": ["tiny-sums", "tiny-boxed"],
        "advantage": ["raw", "grpo"],
    },
}  # fmt: skip
SHOWN = ("shows", "sample")
OPTIONS: dict[str, set[str]] = {
    name: {"--help"}.union(*([*p.opts, *p.secondary_opts] for p in command.params))
    for name, command in GROUP.commands.items()
}
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
VARIABLE = re.compile(r"(?<![\w./-])[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+(?![\w.])")
PLACEHOLDER = re.compile(r"[A-Z$<{[]|\.\.\.|…")
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=map(str, DOCUMENTS))


def spoken(document: Document) -> list[tuple[str, list[str]]]:
    """Where a command stands, and its words: in blocks, and inline where it begins with one."""
    blocks = [block for block in document.blocks if block.language in MARKED]
    said = [(str(block), words) for block in blocks for words in commands(block.text)]
    inline = [text for text in document.code if re.match(r"(\.venv/bin/)?(banditgrid|make) ", text)]
    return said + [(str(document), words) for text in inline for words in commands(text)]


@each_document
def test_every_block_says_whether_it_runs(document: Document) -> None:
    blocks = [block for block in document.blocks if block.language in (*MARKED, "text")]
    assert not [str(block) for block in blocks if block.mark is None]
    wrong = [b for b in blocks if b.mark and (b.language == "text") != (b.mark.kind in SHOWN)]
    assert not [str(block) for block in wrong], "`shows` and `sample` are marks of text"


@each_document
def test_every_command_and_option_is_there(document: Document) -> None:
    wrong = []
    for where, words in spoken(document):
        if (arguments := called("banditgrid", words, COMMANDS)) is not None:
            told = amiss(arguments, whole=where != str(document))
            wrong += [f"{where}: banditgrid {' '.join(arguments)}: {told}"] if told else []
    assert not wrong, "\n".join(wrong)


def amiss(arguments: list[str], whole: bool = True) -> str:
    """What the command line would not take of these words, or nothing; a word in capitals stands
    for any value. Inline (not `whole`), what a command requires may be left out."""
    words = [word for word in arguments if word not in ("...", "…")]
    if not words or "--help" in words or PLACEHOLDER.match(words[0]):
        return ""
    if words[0] not in COMMANDS:
        return f"no command {words[0]!r}"
    values = ["1" if PLACEHOLDER.search(word) else word for word in words[1:]]
    try:
        GROUP.commands[words[0]].make_context(words[0], values)
    except Exception as error:  # Typer's own, of a package that it keeps to itself
        missing = type(error).__name__ == "MissingParameter"
        return "" if missing and not whole else f"{type(error).__name__}: {error}"
    return ""


@each_document
def test_every_option_named_alone_is_there(document: Document) -> None:
    """Inline: of the command that stands before it; of any, where none does, or of a program that
    the document's blocks or `deploy/` call."""
    others = "\n".join(block.text for block in document.blocks) + sources(
        "deploy", "tests/benchmarks"
    )
    elsewhere = set(OPTION.findall(others))
    wrong = []
    for code in document.code:
        first = code.split(" ")[0]
        if first in COMMANDS or first.startswith("--"):
            known = OPTIONS[first] if first in COMMANDS else set.union(elsewhere, *OPTIONS.values())
            wrong += [f"{code}: {name}" for name in OPTION.findall(code) if name not in known]
    assert not wrong, "\n".join(wrong)


@each_document
def test_every_variable_of_the_environment_is_read_somewhere(document: Document) -> None:
    known = set(VARIABLE.findall(sources(*FOLDERS) + (ROOT / "Makefile").read_text()))
    assert not [name for code in document.code for name in VARIABLE.findall(code) if
                name not in known]  # fmt: skip


@cache
def sources(*folders: str) -> str:
    """The text of what is no document in some folders, the tests of modules left out."""
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*"))]
    kept = [p for p in files if p.is_file() and p.suffix not in (".md", ".png", ".pyc")]
    shown = [p for p in kept if "__pycache__" not in p.parts and not p.name.startswith("test_")]
    return "\n".join(path.read_text(encoding="utf-8", errors="ignore") for path in shown)


@each_document
def test_every_make_target_is_there(document: Document) -> None:
    said = [(where, called("make", words, TARGETS) or []) for where, words in spoken(document)]
    asked = [(where, word) for where, words in said for word in words if re.match("[a-z]", word)]
    assert not [f"{where}: make {word}" for where, word in asked if word not in TARGETS]


@each_document
def test_every_path_of_the_repository_is_there(document: Document) -> None:
    texts = [*document.code, *(b.text for b in document.blocks if b.language in MARKED)]
    pattern = rf"(?<![\w./~$}}-])(?:{'|'.join(FOLDERS)})/[\w./*-]*[\w*]"
    named = {name for text in texts for name in re.findall(pattern, text)}
    placed = {name for name in named if not re.search("[A-Z]{4,}", Path(name).stem) or
              name.endswith(".md")}  # fmt: skip
    made = {block.mark.writes for block in document.blocks if block.mark}
    assert not sorted(n for n in placed - made if not _is_there(n, document.path.parent))


def _is_there(name: str, beside: Path) -> bool:
    """In the repository, or what a command makes there: such files are ignored by git."""
    made = ["git", "check-ignore", "--quiet", name]
    found = any(list(folder.glob(name)) for folder in (ROOT, beside))
    return found or subprocess.run(made, cwd=ROOT).returncode == 0


@each_document
def test_every_link_and_image_leads_somewhere(document: Document) -> None:
    lost = []
    for target in (*document.links, *document.images):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        path = (document.path.parent / name).resolve() if name else document.path
        if not path.exists() or (heading and heading not in read(path).headings):
            lost.append(target)
    assert not lost


@each_document
def test_every_yaml_is_yaml_and_every_grid_a_grid(document: Document, tmp_path: Path) -> None:
    for block in document.blocks:
        if block.language != "yaml":
            continue
        content = next(iter(yaml.safe_load_all(block.text)))
        if isinstance(content, dict) and set(content) <= KEYS:
            whole = {"name", "axes"} <= set(content)
            load(block, content if whole else PART | content, tmp_path)


def load(block: Block, content: dict[str, Any], folder: Path) -> None:
    """Load a grid; a part of one in the place where a reader would put it."""
    if "plugins" in content:  # names a package that the reader is told to write
        return
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    try:
        assert load_grid(path).cells()
    except InputError as error:
        pytest.fail(f"{block}: {error}", pytrace=False)


# ---- the harness itself


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["plan"], "Missing"),
        (["plan", "a.yaml", "--slots", "4", "--price", "2.5"], ""),
        (["submit", "GRID...", "--address", "http://HEAD:8265", "--slots", "N"], ""),
        (["plan", "a.yaml", "--slot"], "--slot"),
        (["plan", "a.yaml", "--slots", "four"], "integer"),
        (["plam", "a.yaml"], "no command 'plam'"),
        (["plan", "a.yaml", "--slots"], "argument"),
    ],
)
def test_a_wrong_option_is_seen(words: list[str], told: str) -> None:
    assert told in amiss(words) if told else not amiss(words)


def test_commands_are_found_where_bash_has_them() -> None:
    text = """\
A=1 .venv/bin/banditgrid plan a.yaml --slots 4 > plan.txt 2>&1 && make demo  # and more
docker compose exec head banditgrid status \\
    --json | jq .
kubectl create namespace banditgrid
kubectl --namespace banditgrid logs job/x --follow
cat > x <<'EOF'
banditgrid nothing
EOF
token=$(cat ~/.ray/auth_token)
nohup banditgrid ui &
"""
    found = [called("banditgrid", words, COMMANDS) for words in commands(text)]
    assert [f for f in found if f is not None] == [
        ["plan", "a.yaml", "--slots", "4"], ["status", "--json"], ["ui"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    "comment",
    ["<!-- runs: -->", "<!-- needs: -->", "<!-- runs: a exit -->", "<!-- runs: a in b -->"],
)
def test_a_mark_that_says_nothing_is_refused(comment: str) -> None:
    with pytest.raises(BadMark):
        mark_of(comment, "here")


def test_what_is_shown_may_leave_out_what_changes() -> None:
    printed = "a 12 s\nnext   line  42\nmore\nand more\nlast\n"
    assert scratch.shown("a … s\nnext line 42\n…\nlast", printed)
    assert not scratch.shown("a … s\nlast", printed)
    assert not scratch.shown("next line 43", printed)
    assert not scratch.shown("line 42", printed), "whole lines"
    printed = "| (8,8,0) grpo | +0.257 [+0.174, -0.34] |\nport 80, 127.0.0.1\n"
    assert scratch.shown("| (8,8,0) grpo | +0.3 [+0.1, +0.3] |\nport 80, 127.0.0.1", printed)
    assert not scratch.shown("| (8,8,0) grpo | 0.3 [NaN, 0.3] |", printed)
    assert not scratch.shown("port 81, 127.0.0.1", printed)


# ---- what runs


def scripted(blocks: list[Block]) -> list[Block]:
    return [block for block in blocks if block.mark and block.mark.kind == "runs"]


def compare(blocks: list[Block], ran: scratch.Ran) -> str:
    """What is wrong with blocks that were run, or nothing."""
    parts = scripted(blocks)
    if ran.code:
        at = parts[max(len(ran.printed) - 1, 0)]
        how = "has not ended in time" if ran.code == 124 else f"failed with exit code {ran.code}"
        return f"{at}: {how}:\n{''.join(ran.printed[-1:])[-4000:]}"
    printed, said = dict(zip(parts, ran.printed, strict=True)), ""
    for block in blocks:
        if block in printed:
            said = printed[block]
        elif not scratch.shown(block.text, said):
            return f"{block}: not what was printed:\n{said[-8000:]}"
    return ""


def test_a_block_that_fails_is_named() -> None:
    def block(line: int, text: str, mark: str) -> Block:
        return Block(ROOT / "README.md", line, "bash", text, mark_of(f"<!-- {mark} -->", ""))

    first = block(1, "A=5; cd grids; sleep 300 &\n", "runs: x")
    blocks = [first, block(2, "echo $A; pwd\n", "runs: x"), block(3, "5\n…/grids\n", "shows")]
    after = block(4, "(exit 2)\n", "runs: x exit 2")
    ran = scratch.run([*blocks[:2], after])
    assert not compare([*blocks, after], ran)
    assert "README.md:3" in compare([*blocks[:2], block(3, "6\n", "shows"), after], ran)
    for wrong, told in {
        block(5, "false | cat\necho here\n", "runs: x"): "README.md:5: failed with exit code 1",
        block(6, "true\n", "runs: x exit 2"): "ended with 0",
        block(7, "sleep 9\n", "runs: x timeout 1"): "in time",
    }.items():
        said = compare([wrong, first], scratch.run([wrong, first] if wrong.line < 7 else [wrong]))
        assert told in said and "here" not in said


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", scripts())
def test_what_documents_show_happens(name: str) -> None:
    blocks = scripts()[name]
    if wrong := compare(blocks, scratch.run(scripted(blocks))):
        pytest.fail(wrong, pytrace=False)
