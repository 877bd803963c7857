"""The services of deploy/compose run as processes, and a trainer's grid goes through all of them.

Every right and every refusal is asked of the real servers. Leaves out containers (see composed.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import ROOT
from tests.integration.composed import Composed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BIN = Path(sys.executable).parent
GRID = """\
name: small
study: composed
base: {rounds: 4, batch: 8, rollouts: 2, eval: {every: 2, test_questions: 40, train_questions: 0}}
axes: {model: [tiny-qwen2], dataset: [tiny-sums], advantage: [raw, grpo]}
seeds: [0]
"""
ADA = "a-password-of-ada"


@pytest.fixture(scope="module")
def composed() -> Iterator[Composed]:
    with Composed() as services:
        print(services.seconds)
        yield services


@pytest.fixture(scope="module")
def submitted(composed: Composed) -> subprocess.CompletedProcess[str]:
    return command(
        composed, "submit", grid(composed), "--address", composed.dashboard, "--store",
        composed.store, "--tracking-uri", composed.mlflow, RAY_AUTH_TOKEN=token(composed),
    )  # fmt: skip


def grid(composed: Composed, name: str = "small", change: tuple[str, str] = ("", "")) -> Path:
    path = composed.folder / f"{name}.yaml"
    text = GRID.replace("name: small", f"name: {name}")
    path.write_text(text.replace(*change) if change[0] else text, encoding="utf-8")
    return path


def token(composed: Composed) -> str:
    return composed.secrets["RAY_AUTH_TOKEN"]


def password(composed: Composed, user: str) -> str:
    return {"ada": ADA}.get(user) or composed.secrets[f"MLFLOW_{user.upper()}_PASSWORD"]


def person(composed: Composed, user: str) -> dict[str, str]:
    """The settings of somebody who has a password."""
    return {
        "MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password(composed, user)
    }  # fmt: skip


def command(
    composed: Composed, *words: object, program: Path = BIN / "banditgrid", **more: str
) -> subprocess.CompletedProcess[str]:
    """A command of somebody on this machine, who knows what they are given here and no more."""
    home = composed.folder / "somebody"
    home.mkdir(exist_ok=True)
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_AUTH_MODE": "token"}
    return subprocess.run(
        [str(program), *map(str, words)], cwd=home, capture_output=True, text=True, timeout=400,
        env={"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(home), "COLUMNS": "200", **quiet, **more},
    )  # fmt: skip


def users(composed: Composed, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """users.py, as an admin runs it unless `more` says otherwise."""
    settings = {"MLFLOW_TRACKING_URI": composed.mlflow, **person(composed, "admin"), **more}
    program = ROOT / "deploy" / "mlflow" / "users.py"
    return command(composed, program, *words, program=Path(sys.executable), **settings)


def api(composed: Composed, user: str, path: str, **body: Any) -> requests.Response:
    """What MLflow answers: to a POST where there is a body, else to a GET."""
    url = f"{composed.mlflow}/api/2.0/mlflow/{path}"
    auth = (user, password(composed, user))
    if body:
        return requests.post(url, json=body, auth=auth, timeout=30)
    return requests.get(url, auth=auth, timeout=30)


def the_study(composed: Composed, user: str) -> tuple[str, list[dict[str, Any]]]:
    """Id of the study's experiment and its runs of cells, as a user sees them."""
    found = api(composed, user, "experiments/get-by-name?experiment_name=composed").json()
    experiment = found["experiment"]["experiment_id"]
    told = api(
        composed, user, "runs/search", experiment_ids=[experiment],
        filter="tags.`banditgrid.cell_key` != ''",
    ).json()  # fmt: skip
    return experiment, told.get("runs", [])


# ---- the way through


def test_a_submitted_grid_ends_up_in_mlflow(
    composed: Composed, submitted: subprocess.CompletedProcess[str]
) -> None:
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    _, runs = the_study(composed, "trainer")
    assert [run["info"]["status"] for run in runs] == ["FINISHED"] * 2
    for run in runs:
        metrics = {one["key"] for one in run["data"]["metrics"]}
        assert {"test/pass_at_1", "final/test/pass_at_1"} <= metrics
    told = submitted.stdout + submitted.stderr + composed.log("ray-head")
    assert not [name for name, value in composed.secrets.items() if value in told]


def test_tables_of_a_trainer_lie_in_the_s3_store(
    composed: Composed, submitted: subprocess.CompletedProcess[str]
) -> None:
    made = command(
        composed, "tables", grid(composed), "--store", composed.store, "--out",
        composed.folder / "tables", "--tracking-uri", composed.mlflow,
        **person(composed, "trainer"),
    )  # fmt: skip
    assert made.returncode == 0 and "did not take" not in made.stderr, made.stdout + made.stderr
    if not composed.has_s3:
        pytest.skip("no S3 server (npm, s3rver): artifacts lie in a folder")
    import boto3
    from botocore.exceptions import ClientError

    def kept(key: str) -> list[str]:
        store = boto3.client(
            "s3", endpoint_url=composed.storage, region_name="us-east-1", aws_access_key_id=key,
            aws_secret_access_key=composed.secrets["S3_SECRET_KEY"],
        )  # fmt: skip
        return [one["Key"] for one in store.list_objects_v2(Bucket="mlflow")["Contents"]]

    there = kept(composed.secrets["S3_ACCESS_KEY"])
    assert [key for key in there if key.endswith("tables/small.md")], there
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        kept("another")


def test_making_roles_users_and_bucket_again_changes_nothing(composed: Composed) -> None:
    before = users(composed, "list").stdout
    assert {"admin: admin", "reader: reader", "trainer: trainer"} <= set(before.splitlines())
    again = composed.once("users")
    assert "made" not in again and "role reader: there" in again, again
    if composed.has_s3:
        assert composed.once("bucket") == "bucket mlflow: there\n"
    assert users(composed, "list").stdout == before


# ---- who may what


def test_a_reader_browses(composed: Composed, submitted: subprocess.CompletedProcess[str]) -> None:
    experiment, runs = the_study(composed, "reader")
    assert len(runs) == 2
    uri = api(composed, "reader", f"artifacts/list?run_id={runs[0]['info']['run_id']}")
    assert uri.status_code == 200, uri.text
    names = [one["path"] for one in uri.json().get("files", []) if not one["is_dir"]]
    code = (
        "import sys, mlflow; "
        "c = mlflow.MlflowClient(sys.argv[1]); "
        "r = c.search_runs([sys.argv[2]], \"tags.`banditgrid.kind` = 'analysis'\")[0]; "
        "print(open(c.download_artifacts(r.info.run_id, 'tables/small.md')).read())"
    )
    got = command(
        composed, "-c", code, composed.mlflow, experiment, program=Path(sys.executable),
        MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD="false", **person(composed, "reader"),
    )  # fmt: skip
    assert "(8,2,0) grpo" in got.stdout, (names, got.stderr)
    page = requests.get(composed.mlflow, auth=("reader", password(composed, "reader")), timeout=10)
    assert page.status_code == 200 and "<title>MLflow</title>" in page.text


WRITES: dict[str, Callable[[str, str], tuple[str, dict[str, Any]]]] = {
    "create an experiment": lambda e, r: ("experiments/create", {"name": "a reader's"}),
    "delete the experiment": lambda e, r: ("experiments/delete", {"experiment_id": e}),
    "tag the experiment": lambda e, r: (
        "experiments/set-experiment-tag", {"experiment_id": e, "key": "a", "value": "b"}
    ),
    "create a run": lambda e, r: ("runs/create", {"experiment_id": e}),
    "log a metric": lambda e, r: (
        "runs/log-metric", {"run_id": r, "key": "m", "value": 1, "timestamp": 1}
    ),
    "log a batch": lambda e, r: (
        "runs/log-batch", {"run_id": r, "metrics": [], "params": [], "tags": []}
    ),
    "set a tag": lambda e, r: ("runs/set-tag", {"run_id": r, "key": "a", "value": "b"}),
    "delete a tag": lambda e, r: ("runs/delete-tag", {"run_id": r, "key": "banditgrid.cell_key"}),
    "end a run": lambda e, r: ("runs/update", {"run_id": r, "status": "FAILED"}),
    "delete a run": lambda e, r: ("runs/delete", {"run_id": r}),
    "make a user": lambda e, r: (
        "users/create", {"username": "mallory", "password": "mallory-mallory"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRITES)
def test_a_reader_cannot(
    what: str, composed: Composed, submitted: subprocess.CompletedProcess[str]
) -> None:
    experiment, runs = the_study(composed, "reader")
    path, body = WRITES[what](experiment, runs[0]["info"]["run_id"])
    assert api(composed, "reader", path, **body).status_code == 403


def test_a_reader_cannot_put_artifacts(
    composed: Composed, submitted: subprocess.CompletedProcess[str]
) -> None:
    _, runs = the_study(composed, "reader")
    there = runs[0]["info"]["artifact_uri"].removeprefix("mlflow-artifacts:")
    url = f"{composed.mlflow}/api/2.0/mlflow-artifacts/artifacts{there}/x.txt"
    auth = ("reader", password(composed, "reader"))
    assert requests.put(url, data=b"x", auth=auth, timeout=10).status_code == 403


def test_a_trainer_writes_to_anothers_study_and_deletes_nothing_of_it(
    composed: Composed, submitted: subprocess.CompletedProcess[str]
) -> None:
    added = users(composed, "add", "ada", "trainer", MLFLOW_PASSWORD_ADA=ADA)
    assert added.stdout == "user ada, trainer: made\n", added.stderr
    experiment, runs = the_study(composed, "ada")
    run = runs[0]["info"]["run_id"]
    written = api(composed, "ada", "runs/set-tag", run_id=run, key="seen", value="by ada")
    assert written.status_code == 200
    assert api(composed, "ada", "runs/delete", run_id=run).status_code == 403
    assert api(composed, "ada", "experiments/delete", experiment_id=experiment).status_code == 403
    assert users(composed, "list", **person(composed, "ada")).returncode == 0
    refused = users(composed, "remove", "reader", **person(composed, "ada"))
    assert refused.returncode == 2 and "ada is no admin" in refused.stderr


def test_a_user_without_a_role_sees_nothing(
    composed: Composed, submitted: subprocess.CompletedProcess[str]
) -> None:
    made = api(composed, "admin", "users/create", username="eve", password="eve-eve-eve-eve")
    assert made.status_code == 200, made.text
    seen = requests.post(
        f"{composed.mlflow}/api/2.0/mlflow/experiments/search", json={"max_results": 10},
        auth=("eve", "eve-eve-eve-eve"), timeout=10,
    )  # fmt: skip
    assert seen.status_code == 200 and not seen.json().get("experiments")
    assert users(composed, "remove", "eve").returncode == 0


def test_a_password_is_rotated_and_a_role_taken_back(composed: Composed) -> None:
    first, second = "bobs-first-password", "bobs-second-password"
    users(composed, "add", "bob", "trainer", MLFLOW_PASSWORD_BOB=first)

    def makes(name: str, word: str) -> int:
        return requests.post(
            f"{composed.mlflow}/api/2.0/mlflow/experiments/create", json={"name": name},
            auth=("bob", word), timeout=10,
        ).status_code  # fmt: skip

    assert makes("bob's", first) == 200
    again = users(composed, "add", "bob", "trainer", MLFLOW_PASSWORD_BOB=second)
    assert again.stdout == "user bob, trainer: there\n"
    assert makes("his second", second) == 401  # adding somebody again is no way to their account
    assert users(composed, "rotate", "bob", MLFLOW_PASSWORD_BOB=second).returncode == 0
    assert makes("his second", second) == 200
    assert users(composed, "add", "bob", "reader").stdout == "user bob, reader: there\n"
    assert makes("his third", second) == 403
    found = requests.get(
        f"{composed.mlflow}/api/2.0/mlflow/experiments/get-by-name?experiment_name=bob's",
        auth=("bob", second), timeout=10,
    )  # fmt: skip
    experiment = found.json()["experiment"]["experiment_id"]
    gone = requests.post(
        f"{composed.mlflow}/api/2.0/mlflow/experiments/delete", json={"experiment_id": experiment},
        auth=("bob", second), timeout=10,
    )  # fmt: skip
    assert gone.status_code == 403  # not what he made as a trainer either


def test_passwords_of_env_are_changed_as_the_readme_tells(composed: Composed) -> None:
    def knows(user: str, word: str) -> bool:
        url = f"{composed.mlflow}/api/2.0/mlflow/experiments/search?max_results=1"
        return requests.get(url, auth=(user, word), timeout=10).status_code == 200

    old, new = password(composed, "reader"), "another-password-of-reader"
    try:
        composed.once("users", MLFLOW_PASSWORD_READER=new)  # .env alone, and `up`
        assert knows("reader", old) and not knows("reader", new)
        told = composed.environment("users") | {"MLFLOW_PASSWORD_READER": new}
        assert users(composed, "rotate", "reader", **told).returncode == 0
        assert knows("reader", new)
        again = composed.environment("users") | {"MLFLOW_PASSWORD_ADMIN": "another-of-admin"}
        assert users(composed, "rotate", "admin", **again).returncode == 0
        composed.once("users", MLFLOW_TRACKING_PASSWORD="another-of-admin")
    finally:
        first = {"MLFLOW_TRACKING_PASSWORD": "another-of-admin"}
        users(
            composed, "rotate", "admin", MLFLOW_PASSWORD_ADMIN=password(composed, "admin"), **first
        )
        users(composed, "rotate", "reader", MLFLOW_PASSWORD_READER=old)
    assert knows("reader", old) and knows("admin", password(composed, "admin"))


# ---- who is refused


@pytest.mark.parametrize("auth", [None, ("trainer", "wrong"), ("nobody", "at-all")])
@pytest.mark.parametrize(
    "path", ["/", "/api/2.0/mlflow/experiments/search?max_results=1", "/graphql", "/signup",
             "/api/2.0/mlflow-artifacts/artifacts", "/ajax-api/2.0/mlflow/runs/search"],
)  # fmt: skip
def test_the_tracking_server_wants_a_password(
    composed: Composed, auth: tuple[str, str] | None, path: str
) -> None:
    assert requests.get(composed.mlflow + path, auth=auth, timeout=10).status_code == 401


@pytest.mark.parametrize("given", ["", "0" * 48])
@pytest.mark.parametrize(
    "path", ["/api/version", "/api/jobs/", "/api/v0/tasks", "/nodes?view=summary"]
)
def test_rays_dashboard_wants_a_token(composed: Composed, given: str, path: str) -> None:
    headers = {"Authorization": f"Bearer {given}"} if given else {}
    answer = requests.get(composed.dashboard + path, headers=headers, timeout=10)
    assert answer.status_code == (403 if given else 401)


@pytest.mark.parametrize("given", ["", "0" * 48])
def test_rays_jobs_api_wants_a_token(composed: Composed, given: str) -> None:
    headers = {"Authorization": f"Bearer {given}"} if given else {}
    answer = requests.post(
        f"{composed.dashboard}/api/jobs/", json={"entrypoint": "true"}, headers=headers, timeout=10
    )
    assert answer.status_code == (403 if given else 401)
    settings = {"RAY_AUTH_TOKEN": given} if given else {}
    refused = command(
        composed, "submit", grid(composed), "--address", composed.dashboard, "--store",
        composed.store, **settings,
    )  # fmt: skip
    assert refused.returncode == 2 and "token" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("given", ["", "0" * 48])
def test_rays_own_port_wants_a_token(composed: Composed, given: str) -> None:
    settings = {"RAY_AUTH_TOKEN": given} if given else {"RAY_AUTH_MODE": "disabled"}
    asked = ("status", "--address", composed.gcs)
    refused = command(composed, *asked, program=BIN / "ray", **settings)
    assert refused.returncode != 0, refused.stdout
    taken = command(composed, *asked, program=BIN / "ray", RAY_AUTH_TOKEN=token(composed))
    assert taken.returncode == 0, taken.stderr


# ---- one message


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "it asks for a user and a password: set MLFLOW_TRACKING_USERNAME"),
        ({"MLFLOW_TRACKING_USERNAME": "trainer", "MLFLOW_TRACKING_PASSWORD": "wrong"},
         "it knows no user 'trainer' with this password"),
        ({"MLFLOW_TRACKING_USERNAME": "reader"}, "user 'reader' may not do this"),
    ],
    ids=["no password", "a wrong password", "a reader"],
)  # fmt: skip
@pytest.mark.parametrize("study", ["composed", "new"], ids=["known study", "new study"])
def test_a_run_that_could_show_nothing_does_not_begin(
    settings: dict[str, str], says: str, study: str, composed: Composed,
    submitted: subprocess.CompletedProcess[str], tmp_path: Path,
) -> None:  # fmt: skip
    if settings == {"MLFLOW_TRACKING_USERNAME": "reader"}:
        settings = person(composed, "reader")
    asked = grid(composed, f"refused-{study}", ("study: composed", f"study: {study}"))
    ran = command(
        composed, "run", asked, "--store", tmp_path / "store", "--tracking-uri", composed.mlflow,
        **settings,
    )  # fmt: skip
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert says in " ".join(ran.stderr.split()) and "Traceback" not in ran.stderr
    assert "starting Ray" not in ran.stdout
    assert not (tmp_path / "store").exists()


def test_a_reader_who_makes_tables_is_told(
    composed: Composed, submitted: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    made = command(
        composed, "tables", grid(composed), "--store", composed.store, "--out", tmp_path,
        "--tracking-uri", composed.mlflow, **person(composed, "reader"),
    )  # fmt: skip
    assert made.returncode == 0 and (tmp_path / "small.md").is_file()
    assert "user 'reader' may not do this" in made.stderr


def test_a_cell_scored_anew_by_another_trainer_gets_a_run_of_its_own(
    composed: Composed, submitted: subprocess.CompletedProcess[str]
) -> None:
    """The first trainer's run, which ada may not delete, is the cell's no longer."""
    users(composed, "add", "ada", "trainer", MLFLOW_PASSWORD_ADA=ADA)
    _, before = the_study(composed, "ada")
    again = command(
        composed, "run", grid(composed, "anew", ("test_questions: 40", "test_questions: 30")),
        "--store", composed.store, "--tracking-uri", composed.mlflow, "--slots", "1",
        **person(composed, "ada"),
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    _, after = the_study(composed, "ada")
    ids = [{run["info"]["run_id"] for run in runs} for runs in (before, after)]
    assert len(ids[1]) == 2 and not ids[0] & ids[1]
    old = api(composed, "ada", f"runs/get?run_id={sorted(ids[0])[0]}").json()["run"]
    tags = {one["key"]: one["value"] for one in old["data"]["tags"]}
    assert tags["banditgrid.status"] == "superseded" and "banditgrid.cell_key" not in tags
    assert old["info"]["lifecycle_stage"] == "active"


def test_start_ray_refuses_to_run_without_a_token(tmp_path: Path) -> None:
    script = ROOT / "deploy" / "images" / "start-ray.sh"
    for settings in ({}, {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "x"}):
        ran = subprocess.run(
            ["sh", script, "head"], env={"PATH": os.environ["PATH"], **settings},
            capture_output=True, text=True, timeout=10,
        )  # fmt: skip
        assert ran.returncode == 2 and "RAY_AUTH_MODE=token" in ran.stderr
