"""Plug-ins: read without running, hashed by source, tried before a run, checked at every call."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from grids import InputError, load_grid
from grids.load import resolved
from grids.paths import Store
from grids.plugin import digest, read
from orchestrator import keeping
from tests.conftest import ROOT
from workers import plugins
from workers.run import run_cell

DOCUMENT = ROOT / "grids" / "PLUGINS.md"
BLOCK = re.compile(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", re.DOTALL)
ESTIMATOR = """
import torch


def mine(rewards_P_G, mask_P_G, *, context=None):
    return torch.where(mask_P_G, rewards_P_G - 0.5, 0.0)


ADVANTAGES = {"mine": mine}
"""
GRID = """
name: g
plugins: [mypkg]
base: {rounds: 2, batch: 4, rollouts: 2, eval: {every: 2, test_questions: 8, train_questions: 4}}
axes: {model: [tiny-qwen2], dataset: [tiny-sums], advantage: [raw, mine]}
"""


@pytest.fixture
def package(tmp_path):
    """Writes a package's files beside the grid: package("mypkg", ESTIMATOR)."""

    def write(name: str, source: str, **files: str) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for inner, text in {"__init__": source, **files}.items():
            (folder / f"{inner}.py").write_text(text)
        return folder

    return write


@pytest.fixture
def documented(tmp_path):
    """The files of the document's examples, in a folder."""
    for name, text in BLOCK.findall(DOCUMENT.read_text()):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def keys(grid) -> dict[str, str]:
    return {cell.advantage: cell.key for cell in grid.cells()}


def trained(cell, folder) -> list[float]:
    run_cell(cell, folder, lambda progress: None)
    journal = (folder / "journal.jsonl").read_text()
    return [float(x) for x in re.findall(r'"update/loss": ([-\d.e]+)', journal)]


# ---- keys


def test_the_source_is_in_the_keys_of_the_cells_that_use_it_alone(grid_file, package):
    package("mypkg", ESTIMATOR)
    plain = load_grid(grid_file(GRID.replace("plugins: [mypkg]\n", "").replace(", mine", "")))
    before = keys(load_grid(path := grid_file(GRID)))
    assert before["raw"] == keys(plain)["raw"]
    assert load_grid(path).cells()[0].plugin_specs == ()
    package("mypkg", ESTIMATOR.replace("0.5", "0.25"))
    after = keys(load_grid(path))
    assert after["raw"] == before["raw"] and after["mine"] != before["mine"]


def test_a_module_beside_the_registry_counts_and_a_readme_does_not(grid_file, package):
    source = ESTIMATOR.replace("import torch", "import torch\nfrom mypkg.half import HALF")
    folder = package("mypkg", source, half="HALF = 0.5\n")
    before = keys(load_grid(path := grid_file(GRID)))
    (folder / "README.md").write_text("words")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert keys(load_grid(path)) == before
    (folder / "half.py").write_text("HALF = 0.4\n")
    assert keys(load_grid(path))["mine"] != before["mine"]


def test_renaming_the_package_changes_no_key(grid_file, package, tmp_path):
    source = ESTIMATOR.replace("import torch", "import torch\nfrom mypkg.half import HALF")
    package("mypkg", source, half="HALF = 0.5\n")
    before = keys(load_grid(grid_file(GRID)))
    package("renamed", source.replace("mypkg", "renamed"), half="HALF = 0.5\n")
    assert keys(load_grid(grid_file(GRID.replace("mypkg", "renamed")))) == before
    assert digest(tmp_path / "mypkg") == digest(tmp_path / "renamed")


def test_a_registry_of_a_module_of_the_package(grid_file, package):
    package("mypkg", "from .inner import ADVANTAGES\n", inner=ESTIMATOR)
    assert keys(load_grid(grid_file(GRID))).keys() == {"raw", "mine"}


# ---- what is wrong with it, told with its place


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def f(:\n", "mypkg/__init__.py:1: not valid Python"),
        ("X = 1\n", "registers nothing"),
        ("ADVANTAGES = dict(mine=1)\n", "__init__.py:1: ADVANTAGES: the names of a plug-in"),
        ("ADVANTAGES = {NAME: 1}\n", "write a dict with each name in quotes"),
        ('ADVANTAGES = {"mine": 1, "mine": 2}\n', "'mine' is there twice"),
        ('ADVANTAGES = {"grpo": 1}\n', "'grpo' is claimed twice: by banditgrid itself and by"),
        ("from other import ADVANTAGES\n", "comes from outside of the plug-in"),
        ('MODELS = {"m": make()}\n', "a spec is a dict of plain values"),
        ('MODELS = {"m": {"context": 4}}\n', "names no files"),
    ],
)
def test_what_cannot_be_read(grid_file, package, source, told):
    package("mypkg", source)
    with pytest.raises(InputError, match=re.escape(told)) as error:
        load_grid(grid_file(GRID))
    assert re.match(r"\S+\.yaml:3: ", str(error.value))  # the line of `plugins:`


def test_two_plug_ins_that_claim_one_name(grid_file, package):
    package("mypkg", ESTIMATOR)
    package("other", ESTIMATOR)
    with pytest.raises(InputError, match=r"'mine' is claimed twice: by .*mypkg.*:9 and by .*other"):
        load_grid(grid_file(GRID.replace("[mypkg]", "[mypkg, other]")))


def test_a_plug_in_that_is_not_there(grid_file):
    with pytest.raises(InputError, match=r":3: plugins.0: no plug-in 'mypkg'"):
        load_grid(grid_file(GRID))


def test_an_unknown_name_lists_the_plug_ins(grid_file, package):
    package("mypkg", ESTIMATOR)
    with pytest.raises(InputError, match=r"got 'mime'.*mine.*did you mean 'mine'"):
        load_grid(grid_file(GRID.replace("[raw, mine]", "[raw, mime]")))


RETURNS = {
    "rewards_P_G[:, :1]": "returned (3, 1); expected a tensor of shape (3, 2)",
    "rewards_P_G / 0": "values that are NaN or infinite",
    "mask_P_G": "returned torch.bool; expected floating-point numbers",
    "rewards_P_G.tolist()": "returned list; expected a tensor of shape (3, 2)",
    "rewards_P_G.undefined": "raised AttributeError",
}


@pytest.mark.parametrize(("returned", "told"), RETURNS.items())
def test_what_an_estimator_must_not_return(grid_file, package, returned, told):
    source = f"def mine(rewards_P_G, mask_P_G, *, context=None):\n    return {returned}\n"
    package("mypkg", source + 'ADVANTAGES = {"mine": mine}\n')
    with pytest.raises(InputError, match=re.escape(told)):
        try_in_process(load_grid(grid_file(GRID)))


def try_in_process(grid) -> None:
    from workers.trying import try_function

    for cell in grid.cells():
        if cell.plugin_specs:
            try_function(cell, "ADVANTAGES", cell.advantage)


def test_masked_entries_may_hold_anything_and_return_0(grid_file, package):
    source = "def mine(rewards_P_G, mask_P_G, *, context=None):\n    return rewards_P_G * 1.0\n"
    package("mypkg", source + 'ADVANTAGES = {"mine": mine}\n')
    cell = load_grid(grid_file(GRID)).cells()[1]
    rewards_P_G = torch.tensor([[1.0, torch.nan]])
    made = plugins.function(cell, "ADVANTAGES", "mine")(rewards_P_G, ~rewards_P_G.isnan())
    assert made.tolist() == [[1.0, 0.0]]


def test_trying_in_a_process_of_its_own(grid_file, package, tmp_path):
    package("mypkg", "import nothing_of_this_name\n" + ESTIMATOR)
    told = rf"plug-in mypkg cannot be imported on host \S+ \({tmp_path}/mypkg\): .*nothing_of"
    with pytest.raises(InputError, match=told):
        keeping.check(load_grid(grid_file(GRID)).cells())
    package("mypkg", ESTIMATOR)
    keeping.check(load_grid(grid_file(GRID)).cells())


def test_a_source_that_changed_since_the_plan(grid_file, package, tmp_path):
    package("mypkg", ESTIMATOR)
    cell = load_grid(grid_file(GRID)).cells()[1]
    package("mypkg", ESTIMATOR.replace("0.5", "0.1"))
    with pytest.raises(InputError, match="has changed since the plan was made"):
        run_cell(cell, tmp_path / "cell", lambda progress: None)


# ---- kept in the store, sent with a job


def test_what_a_run_keeps(grid_file, package, tmp_path):
    folder = package("mypkg", ESTIMATOR)
    grid, store = load_grid(grid_file(GRID)), Store(tmp_path / "store")
    kept = keeping.keep([grid], store)
    cell = kept.cell("default", grid.cells()[1])
    assert cell.key == grid.cells()[1].key
    place = Path(cell.plugin_specs[0].path)
    assert place.is_relative_to(tmp_path / "store" / "default" / "plugins")
    shutil.rmtree(folder)  # the original may go
    assert trained(cell, tmp_path / "cell")


def test_an_edited_plug_in_is_imported_anew_in_one_process(grid_file, package, tmp_path):
    def losses(source: str, name: str) -> list[float]:
        package("mypkg", source)
        return trained(load_grid(grid_file(GRID)).cells()[1], tmp_path / name)

    first, second = losses(ESTIMATOR, "a"), losses(ESTIMATOR.replace("- 0.5", "* 0.0"), "b")
    assert first != second
    assert losses(ESTIMATOR, "c") == first


def test_a_grid_that_travels_finds_its_plug_in_beside_itself(grid_file, package, tmp_path):
    from orchestrator.shipping import Shipped, packed

    package("mypkg", ESTIMATOR)
    grid = load_grid(path := grid_file(GRID))
    shipped = Shipped.of(grid, path)
    with packed([shipped]) as parcel:
        arrived = load_grid(parcel.folder / shipped.path)
    assert keys(arrived) == keys(grid)
    assert str(tmp_path) not in shipped.text
    assert str(tmp_path / "mypkg") in resolved(path)


# ---- the document's examples


def test_the_documents_examples_are_short(documented):
    for name, text in BLOCK.findall(DOCUMENT.read_text()):
        assert len(text.strip().splitlines()) < 30, name


EXAMPLES = {
    "median.yaml": "mypkg advantage median",
    "cispo.py": "cispo loss cispo",
    "brevity.py": "brevity reward brief",
    "lenient.py": "lenient grader last-integer",
    "sums_of_three.py": "sums_of_three dataset sums-of-three",
    "mymodels/__init__.py": "mymodels model mine",
}


@pytest.mark.parametrize("words", EXAMPLES.values(), ids=EXAMPLES)
def test_the_documents_examples_train(documented, words, tmp_path):
    package, setting, name = words.split()
    if setting == "model":
        tiny = ROOT / "workers" / "embedded" / "models" / "tiny-llama"
        shutil.copytree(tiny, documented / "mymodels" / "weights")
    settings = {"model": "tiny-qwen2", "dataset": "tiny-sums", setting: name}
    axes = ", ".join(f"{key}: [{value}]" for key, value in settings.items())
    path = documented / "try.yaml"
    path.write_text(
        f"name: try\nplugins: [{package}]\naxes: {{{axes}}}\n"
        "base: {rounds: 2, batch: 4, rollouts: 2, updates_per_round: 2,\n"
        "  eval: {every: 2, test_questions: 8, train_questions: 4}}\n"
    )
    (cell,) = load_grid(path).cells()
    keeping.check([cell])
    assert len(trained(cell, tmp_path / "cell")) == 2


def test_the_documents_grid_loads(documented):
    grid = load_grid(documented / "median.yaml")
    assert len(grid.cells()) == 54 and len(grid.contrasts) == 2
    shipped = load_grid(ROOT / "grids" / "mini" / "advantage.yaml")
    ours, theirs = ({c.key for c in g.cells()} for g in (grid, shipped))
    assert len(ours & theirs) == 36  # raw and grpo are the study's own


def test_a_loss_that_computes_the_same_trains_the_same(grid_file, package, tmp_path):
    """PPO's surrogate without a clip, which no on-policy ratio reaches: TRL's loss is let go."""
    source = "def own(log_p, old, advantages, *, low, high):\n    return -(log_p - old).exp()"
    package("mypkg", source + ' * advantages\nLOSSES = {"own": own}\n')
    text = GRID.replace("advantage: [raw, mine]", "loss: [clip, own], kl: [0.001]")
    clip, own = load_grid(grid_file(text)).cells()
    assert own.loss == "own" and own.key != clip.key
    losses = trained(clip, tmp_path / "clip")
    assert trained(own, tmp_path / "own") == pytest.approx(losses, abs=1e-7)
    half = source.replace("-(log_p", "-0.5 * (log_p") + ' * advantages\nLOSSES = {"own": own}\n'
    package("mypkg", half)
    (_, halved) = load_grid(grid_file(text)).cells()
    assert trained(halved, tmp_path / "half") != pytest.approx(losses, abs=1e-7)


def test_the_documented_loss_has_the_gradient_of_reinforce_where_the_ratio_is_one(documented):
    assert read(documented / "cispo.py").spec.provides == {"LOSSES": ("cispo",)}
    found: dict = {}
    exec((documented / "cispo.py").read_text(), found)
    log_p_N_T = torch.log(torch.tensor([[0.5, 0.25]])).requires_grad_()
    losses_N_T = found["cispo"](
        log_p_N_T, log_p_N_T.detach(), torch.tensor([[2.0]]), low=0.2, high=0.2
    )
    losses_N_T.sum().backward()
    assert log_p_N_T.grad.tolist() == [[-2.0, -2.0]]


def test_a_run_in_mlflow_tells_its_plug_in(grid_file, package, tmp_path):
    from analysis.study import Study
    from orchestrator import tracking
    from orchestrator.writer import Writer
    from workers.lease import held

    package("mypkg", ESTIMATOR)
    grid, store = load_grid(grid_file(GRID)), Store(tmp_path / "store")
    cell = grid.cells()[1]
    store.root.mkdir()
    client = tracking.connect(store.tracking_uri)
    experiment = tracking.ensure_experiment(client, "default")
    paths = store.study("default").cell(cell.key)
    paths.directory.mkdir(parents=True)
    with held(paths, cell.label) as lease:
        Writer(store.tracking_uri, experiment, cell, ("g",), paths, lease).run_id()
    (read_back,) = Study.open(store.tracking_uri, "default").source.cells()
    assert read_back.key == cell.key and read_back.advantage == "mine"


def test_a_name_is_left_out_of_imports_alone(tmp_path):
    """`r.amax` in amax.py and `r.amin` in amin.py are different estimators."""
    source = "def f(r, mask, *, context=None):\n    return r - r.{0}(1, keepdim=True)\n"
    for name in ("amax", "amin"):
        (tmp_path / f"{name}.py").write_text(source.format(name) + 'ADVANTAGES = {"f": f}\n')
    assert digest(tmp_path / "amax.py") != digest(tmp_path / "amin.py")


def test_a_linked_folder_of_the_package_counts(package, tmp_path):
    folder = package("mypkg", ESTIMATOR.replace("import torch", "import torch\nfrom .sub import x"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "__init__.py").write_text("x = 1\n")
    before = digest(folder)
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    assert digest(folder) != before
    keeping.copied(folder, tmp_path / "copy")
    assert digest(tmp_path / "copy" / "mypkg") == digest(folder)


@pytest.mark.parametrize("name", ["random", "grids", "two-words"])
def test_a_name_that_is_somebody_elses_or_no_name(grid_file, tmp_path, name):
    (tmp_path / f"{name}.py").write_text(ESTIMATOR)
    with pytest.raises(InputError, match="rename the plug-in|cannot be imported"):
        load_grid(grid_file(GRID.replace("[mypkg]", f"[./{name}.py]")))


def test_what_a_plug_ins_estimator_may_read_is_in_the_key(grid_file, package):
    package("mypkg", ESTIMATOR)
    text = GRID.replace("[raw, mine]", "[mine], singleton: [raw, zero]")
    assert len(load_grid(grid_file(text)).cells()) == 2


def test_an_edit_between_plan_and_run_stores_nothing(grid_file, package, tmp_path):
    package("mypkg", ESTIMATOR)
    grid, store = load_grid(grid_file(GRID)), Store(tmp_path / "store")
    assert grid.cells()
    package("mypkg", ESTIMATOR.replace("0.5", "0.1"))
    with pytest.raises(InputError, match="has changed since the plan was made"):
        keeping.keep([grid], store)
    assert not list(store.study("default").plugins.glob("*"))
    package("mypkg", ESTIMATOR)
    assert keeping.keep([grid], store).places


def test_what_lies_beside_the_plug_in_does_not_count(grid_file, package, tmp_path):
    (tmp_path / "helper_beside.py").write_text("x = 1\n")
    package("mypkg", "from helper_beside import x\n" + ESTIMATOR)
    with pytest.raises(InputError, match="No module named 'helper_beside'"):
        keeping.check(load_grid(grid_file(GRID)).cells())


def test_a_grader_of_other_golds_passes_and_one_of_another_type_does_not(grid_file, package):
    text = GRID.replace("advantage: [raw, mine]", "grader: [own]")
    source = "import json\ndef own(completion, gold):\n    return json.loads(gold)['x']\n"
    package("mypkg", source + 'GRADERS = {"own": own}\n')
    keeping.check(load_grid(grid_file(text)).cells())
    package("mypkg", "def own(completion, gold):\n    return 1.0\n" + 'GRADERS = {"own": own}\n')
    with pytest.raises(InputError, match=r"returned 1.0; expected a workers.grading.Grade"):
        keeping.check(load_grid(grid_file(text)).cells())


def test_rows_come_from_one_place(grid_file, package):
    package("mypkg", 'DATASETS = {"d": {"source": "s", "path": "rows"}}\nSOURCES = {"s": 1}\n')
    with pytest.raises(InputError, match="has `source:` and `path:`"):
        load_grid(grid_file(GRID))
