"""What the documents show is true: commands, options, paths, links, grids; and blocks that run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from grids import load_grid
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
    blocks = [block for block in document.blocks if block.language in MARKED]
    assert not [str(block) for block in blocks if block.mark is None]


@each_document
def test_every_command_and_option_is_there(document: Document) -> None:
    wrong = []
    for where, words in spoken(document):
        if (arguments := called("banditgrid", words, COMMANDS)) is not None:
            wrong += [f"{where}: banditgrid {' '.join(arguments)}: {w}" for w in amiss(arguments)]
    assert not wrong, "\n".join(wrong)


def amiss(arguments: list[str]) -> list[str]:
    """What the command line would not take of these words."""
    name, *rest = [word for word in arguments if word not in ("...", "…")] or [""]
    if name == "--help" or PLACEHOLDER.match(name):
        return []
    if name not in COMMANDS:
        return [f"no command {name!r}"]
    command = GROUP.commands[name]
    context = command.context_class(command, info_name=name)
    try:
        values, _, _ = command.make_parser(context).parse_args(rest)
    except Exception as error:
        return [str(getattr(error, "message", error))]
    found = []
    for parameter in command.params:
        for value in _listed(values.get(parameter.name)):
            if isinstance(value, str) and not PLACEHOLDER.search(value):
                try:
                    parameter.type.convert(value, parameter, context)
                except Exception as error:
                    found.append(str(getattr(error, "message", error)))
    return found


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


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
    return any(list(folder.glob(name)) for folder in (ROOT, beside))


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
        contents = list(yaml.safe_load_all(block.text))
        if isinstance(contents[0], dict) and {"name", "axes"} <= set(contents[0]):
            _load(block, contents[0], tmp_path)


def _load(block: Block, content: dict[str, Any], folder: Path) -> None:
    """A grid with a plug-in names a package that the document has somebody write."""
    if "plugins" in content:
        assert set(content) <= set(yaml.safe_load((ROOT / "grids/schema.json").read_text())[
            "properties"]), block  # fmt: skip
        return
    path = folder / f"{content['name']}.yaml"
    path.write_text(block.text, encoding="utf-8")
    assert load_grid(path).cells(), block


# ---- the harness itself


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["plan"], ""),
        (["plan", "a.yaml", "--slots", "4", "--price", "2.5"], ""),
        (["submit", "GRID...", "--address", "http://HEAD:8265", "--slots", "N"], ""),
        (["plan", "a.yaml", "--slot"], "--slot"),
        (["plan", "a.yaml", "--slots", "four"], "four"),
        (["plam", "a.yaml"], "no command 'plam'"),
        (["plan", "a.yaml", "--slots"], "requires an argument"),
    ],
)
def test_a_wrong_option_is_seen(words: list[str], told: str) -> None:
    assert (told in " ".join(amiss(words))) if told else not amiss(words)


def test_commands_are_found_where_bash_has_them() -> None:
    text = """\
A=1 .venv/bin/banditgrid plan a.yaml --slots 4 > plan.txt 2>&1 && make demo  # and more
docker compose exec head banditgrid status \\
    --json | jq .
kubectl create namespace banditgrid
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


# ---- what runs


def run_and_compare(blocks: list[Block]) -> str:
    """What is wrong with blocks that are run, or nothing."""
    scripted = [block for block in blocks if block.mark and block.mark.kind == "runs"]
    ran = scratch.run(scripted)
    if ran.code:
        at = scripted[len(ran.printed) - 1] if ran.printed else scripted[0]
        how = "has not ended in time" if ran.code == 124 else f"failed with exit code {ran.code}"
        return f"{at}: {how}:\n{ran.printed[-1][-4000:] if ran.printed else ''}"
    printed, said = dict(zip(scripted, ran.printed, strict=True)), ""
    for block in blocks:
        if block in printed:
            said = printed[block]
        elif not scratch.shown(block.text, said):
            return f"{block}: not what was printed:\n{said[-8000:]}"
    return ""


def test_a_block_that_fails_is_named(tmp_path: Path) -> None:
    def block(line: int, text: str, mark: str) -> Block:
        return Block(ROOT / "README.md", line, "bash", text, mark_of(f"<!-- {mark} -->", ""))

    first = block(1, "A=5; cd grids; sleep 300 &\n", "runs: x")
    blocks = [first, block(2, "echo $A; pwd\n", "runs: x"), block(3, "5\n…/grids\n", "shows")]
    assert not run_and_compare(blocks)
    assert "README.md:3" in run_and_compare([*blocks[:2], block(3, "6\n", "shows")])
    assert not run_and_compare([block(4, "(exit 2)\n", "runs: x exit 2"), first])
    assert "ended with 0" in run_and_compare([block(4, "true\n", "runs: x exit 2")])
    said = run_and_compare([first, block(4, "false | cat\necho here\n", "runs: x"), first])
    assert "README.md:4: failed with exit code 1" in said and "here" not in said
    assert "in time" in run_and_compare([block(5, "sleep 9\n", "runs: x timeout 1")])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", scripts())
def test_what_documents_show_happens(name: str) -> None:
    if wrong := run_and_compare(scripts()[name]):
        pytest.fail(wrong, pytrace=False)
