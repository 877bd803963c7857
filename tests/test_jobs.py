"""Studies as jobs of a real cluster: sent once, followed, found, stopped; what is told in trouble.

Most jobs here run a line of shell instead of a study: what they would train is not the question.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests

from grids.errors import InputError
from grids.load import load_grid
from grids.paths import Store, read_json, read_lines
from orchestrator import afar, cli, endpoint, following, remote
from orchestrator.following import Follower, exit_code, why
from orchestrator.jobs import KIND, Cluster, Gone, Job, Sent
from orchestrator.shipping import Order, Shipped
from orchestrator.show_jobs import show_sent, told_jobs
from tests.conftest import ROOT
from tests.heads import Head, free_ports, started
from tests.test_cli import Ran
from tests.test_stopping import LABELS, Told, store  # noqa: F401

GRID = """
name: {name}
study: {study}
base: {{rounds: {rounds}, batch: 8, eval: {{every: 2, test_questions: 8, train_questions: 0}}}}
axes: {{model: [tiny-qwen2], dataset: [tiny-sums]}}
"""


@dataclass(frozen=True)
class Cheap(Order):
    """An order whose job is a line of shell."""

    script: str = "sleep 120"

    @property
    def entrypoint(self) -> str:
        return self.script


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with started() as head:
        yield head


@pytest.fixture(autouse=True)
def person(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH",
                 "BANDITGRID_STORE", "MLFLOW_TRACKING_URI"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cluster(head: Head, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """As somebody sees it who has the token; no job is left when it ends."""
    for name, value in head.environment.items():
        monkeypatch.setenv(name, value)
    cluster = Cluster(head.url)
    yield cluster
    while left := [job for job in cluster.jobs() if not job.over]:
        for job in left:
            cluster.stop(job.id)
        time.sleep(0.5)


@pytest.fixture
def order(tmp_path: Path) -> Callable[..., Cheap]:
    def make(study: str, script: str = "sleep 120", names: tuple[str, ...] = ("g",)) -> Cheap:
        shipped = []
        for name in names:
            path = tmp_path / f"{study}-{name}.yaml"
            path.write_text(GRID.format(name=name, study=study, rounds=2))
            shipped.append(Shipped.of(load_grid(path), path))
        return Cheap(study, shipped, "/shared/store", script=script)

    return make


@pytest.fixture
def banditgrid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["banditgrid", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capsys.readouterr()
        return Ran(int(end.value.code or 0), told.out, told.err)

    return run


def followed(cluster: Cluster, sent: Sent) -> tuple[str, Job]:
    text: list[str] = []
    job = Follower(cluster, sent.job.id, text.append).until_end()
    return "".join(text), job


# ---- sending


def test_a_running_study_is_attached_to_unless_there_is_more(
    cluster: Cluster, order: Callable[..., Cheap]
) -> None:
    both = order("attach", names=("g", "h"))
    first = cluster.send(both)
    assert (first.job.id, first.attached) == ("banditgrid-attach-1", False)
    assert (first.job.store, first.job.grids) == ("/shared/store", both.digests)
    for again in (both, order("attach", names=("h",))):
        sent = cluster.send(again)
        assert sent.attached and sent.job.id == first.job.id
    third = cluster.send(order("attach", names=("g", "third")))
    assert third.job.id == "banditgrid-attach-2" and third.beside[0].id == first.job.id
    elsewhere = cluster.send(replace(both, store="/other"))
    assert elsewhere.job.id == "banditgrid-attach-3" and len(elsewhere.beside) == 2
    assert cluster.send(order("attach-1")).job.id == "banditgrid-attach-1-1"
    assert [job.number for job in cluster.jobs("attach")] == [3, 2, 1]


def test_of_two_that_send_at_once_one_attaches(
    cluster: Cluster, order: Callable[..., Cheap]
) -> None:
    made = order("race")
    with ThreadPoolExecutor(4) as pool:
        sent = list(pool.map(lambda _: Cluster(cluster.address).send(made), range(4)))
    assert {one.job.id for one in sent} == {"banditgrid-race-1"}
    assert sorted(one.attached for one in sent) == [False, True, True, True]
    assert len(cluster.jobs("race")) == 1


def test_a_jobs_exit_code_is_the_runs_and_the_next_job_has_the_next_number(
    cluster: Cluster, order: Callable[..., Cheap]
) -> None:
    codes = (0, 1, 2, 130)
    sent = [cluster.send(order(f"code{code}", f"exit {code}")) for code in codes]
    ended = [followed(cluster, one)[1] for one in sent]
    assert [(exit_code(job), why(job)) for job in ended] == [(code, None) for code in codes]
    again = cluster.send(order("code0", "exit 0"))
    assert (again.job.number, again.attached, again.beside) == (2, False, ())


def test_a_driver_that_was_killed_is_told(cluster: Cluster, order: Callable[..., Cheap]) -> None:
    _, job = followed(cluster, cluster.send(order("killed", "kill -9 $$")))
    assert exit_code(job) == 1 and "its driver ended with code" in str(why(job))


def test_a_stopped_job_ends_as_one_stopped_by_ctrl_c(
    cluster: Cluster, order: Callable[..., Cheap]
) -> None:
    sent = cluster.send(order("stopped", "echo begun; sleep 120"))
    text: list[str] = []

    def take(new: str) -> None:
        text.append(new)
        cluster.stop(sent.job.id)

    job = Follower(cluster, sent.job.id, take).until_end()
    assert (job.status, exit_code(job), why(job)) == ("STOPPED", 130, f"{job.id} was stopped")


def test_a_package_that_cannot_be_set_up_is_told(cluster: Cluster) -> None:
    job_id = cluster.start(None, "true", "gcs://_ray_pkg_00000000000000ff.zip", {KIND: "asked"})
    job = Follower(cluster, str(job_id), lambda text: None).until_end()
    assert exit_code(job) == 1 and "runtime_env" in str(why(job))


def test_commands_that_ended_are_swept_off_the_list_and_studies_are_not(
    cluster: Cluster, order: Callable[..., Cheap]
) -> None:
    package = cluster.send(order("kept", "true")).job.package
    asked = str(cluster.start(None, "true", str(package), {KIND: "asked"}))
    for job_id in (asked, "banditgrid-kept-1"):
        Follower(cluster, job_id, lambda text: None).until_end()
    cluster.sweep()
    assert cluster.job(asked).over, "kept for a while"
    time.sleep(3)
    cluster.sweep(2)
    assert cluster.job("banditgrid-kept-1").over
    with pytest.raises(Gone):
        cluster.job(asked)


def job(study: str, number: int, status: str = "RUNNING", where: str = "/shared") -> Job:
    return Job(f"banditgrid-{study}-{number}", study, where, {"g": "1"}, "code", status, 1e9)


def test_jobs_that_run_are_told_and_else_the_newest_of_a_study() -> None:
    newest_first = [job("a", 3), job("a", 2, "FAILED"), job("b", 2, "STOPPED"), job("a", 1)]
    newest_first += [job("b", 1, "SUCCEEDED")]
    told = [(one.study, one.number) for one in told_jobs(newest_first)]
    assert told == [("a", 3), ("a", 1), ("b", 2)]
    assert [place.store for place in afar.places(newest_first, None)] == ["/shared"]
    (named,) = afar.places(newest_first, Path("/other"))
    assert (named.store, named.job) == ("/other", None)


def test_a_sender_reads_whom_it_shares_with_and_how_to_go_on() -> None:
    out = Told()
    beside = (job("a", 1), job("a", 2, where="/other"))
    show_sent(Sent(job("a", 3), False, "code", beside, 4_000_000), "http://h:8265", out)
    assert "banditgrid-a-3 runs study a; code and grids: 4.0 MB" in str(out)
    assert "beside it runs banditgrid-a-1: the two share the cells out" in str(out)
    assert "beside it runs banditgrid-a-2: it has a store of its own, /other" in str(out)
    assert "banditgrid stop a --address http://h:8265" in str(out)
    show_sent(Sent(job("a", 3), True, "other code"), "http://h:8265", out)
    assert "since 2001-09-09 01:46:40, with other code than this machine's" in str(out)


# ---- following


def test_a_log_is_the_jobs_own_text_once_also_over_lost_connections(
    cluster: Cluster, order: Callable[..., Cheap], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "QUIET_SECONDS", 0.4)
    script = "for i in 1 2 3; do echo line $i é; sleep 0.7; done; printf end"
    text, job = followed(cluster, cluster.send(order("log", script)))
    assert text == "line 1 é\nline 2 é\nline 3 é\nend"
    out: list[str] = []
    Follower(cluster, job.id, out.append).so_far()
    assert "".join(out) == text


def test_what_was_written_is_not_written_again_over_a_new_connection(
    cluster: Cluster, order: Callable[..., Cheap], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "sleep 0.2; for i in $(seq 30); do echo line $i; done"
    sent = cluster.send(order("twice", script))
    followed(cluster, sent)
    monkeypatch.setattr(following, "LOOK_SECONDS", 4.0)  # the log comes before the next look
    text: list[str] = []
    follower = Follower(cluster, sent.job.id, text.append)
    for _ in range(2):
        asyncio.run(follower._tail())
    assert len(text) > 0
    follower.so_far()
    assert "".join(text) == "".join(f"line {i}\n" for i in range(1, 31))


def test_a_job_that_the_cluster_does_not_know_is_told(cluster: Cluster) -> None:
    with pytest.raises(Gone, match="does not know the job banditgrid-lost-7 any more"):
        Follower(cluster, "banditgrid-lost-7", lambda text: None).until_end()


def test_a_cluster_that_went_away_is_told_after_a_while(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "OUTAGE_SECONDS", 0.5)
    cluster.client._address = f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(InputError, match="stopped answering .* what runs there goes on"):
        Follower(cluster, "banditgrid-x-1", lambda text: None).until_end()
    cluster.client._address = cluster.address


# ---- commands over a store that only the cluster sees


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without the store's folder."""
    monkeypatch.setattr(afar.Place, "sees", lambda *of: False)


@pytest.fixture
def sent(cluster: Cluster, order: Callable[..., Cheap], store: Store) -> Sent:  # noqa: F811
    """A running job of the study `s` over a real store."""
    script = 'trap "exit 130" TERM; while :; do sleep 0.2; done'
    return cluster.send(replace(order("s", script), store=str(store.root)))


@pytest.mark.parametrize("seen", [True, False])
def test_status_tells_jobs_and_cells(
    cluster: Cluster, sent: Sent, banditgrid: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch, seen: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(afar.Place, "sees", lambda *of: seen)
    ran = banditgrid("status", "--address", cluster.address, "--store", sent.job.store, "--json")
    told = json.loads(ran.out)
    assert ran.code == 0 and told["unread"] == []
    (row,) = [job for job in told["jobs"] if job["study"] == "s" and job["ended"] is None]
    assert (row["job"], row["grids"]) == (sent.job.id, ["g"])
    cells = {cell["key"]: cell["label"] for cell in told["cells"] if cell["study"] == "s"}
    assert cells == {**LABELS, "cc55": "cc55"}
    shown = banditgrid("status", "--address", cluster.address, "--store", sent.job.store)
    assert sent.job.id in shown.out and LABELS["aa11"] in shown.out


@pytest.mark.usefixtures("unseen")
def test_logs_of_a_cell_are_read_on_the_cluster(
    cluster: Cluster, sent: Sent, banditgrid: Callable[..., Ran]
) -> None:
    paths = Store(Path(sent.job.store)).study("s").cell("aa11")
    paths.log.write_text("what it printed\n")
    at = ("--address", cluster.address, "--store", sent.job.store)
    ran = banditgrid("logs", "s/aa11", *at)
    assert ran.code == 0 and ran.out.endswith("what it printed\n")
    assert ran.out.startswith(LABELS["aa11"]), "Ray's own lines are left out"
    wrong = banditgrid("logs", "zz", *at)
    assert wrong.code == 2 and "no cell 'zz'" in wrong.out


@pytest.mark.usefixtures("unseen")
def test_stopping_a_study_asks_on_the_cluster_and_ends_its_job(
    cluster: Cluster, sent: Sent, banditgrid: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(afar, "END_SECONDS", 0.0)
    at = ("--address", cluster.address, "--store", sent.job.store)
    ran = banditgrid("stop", "s", *at)
    assert ran.code == 0, ran
    assert "study s: no cell runs" in ran.out and f"{sent.job.id}: stopped" in ran.out
    leave = Store(Path(sent.job.store)).study("s").leave
    assert (read_json(leave) or {})["why"] == "stopped"
    _, job = followed(cluster, sent)
    assert exit_code(job) == 130


def test_a_job_whose_study_is_not_in_the_store_yet_can_be_stopped(
    cluster: Cluster, order: Callable[..., Cheap], banditgrid: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(afar, "END_SECONDS", 0.0)
    sent = cluster.send(replace(order("early"), store=str(tmp_path / "none")))
    ran = banditgrid("stop", "early", "--address", cluster.address)
    assert ran.code == 0 and f"{sent.job.id}: stopped" in ran.out


def test_a_package_that_the_cluster_let_go_of_is_replaced_by_our_code(
    cluster: Cluster, sent: Sent
) -> None:
    assert cluster.has(sent.job.package)
    gone = replace(sent.job, package="gcs://_ray_pkg_00000000000000ff.zip")
    text: list[str] = []
    assert not cluster.has(gone.package)
    assert remote.ask(cluster, ["schema"], text.append, gone) == 0
    assert json.loads("".join(text))["title"] == "banditgrid grid"


def test_the_log_of_a_study_is_that_of_its_newest_job(
    cluster: Cluster, order: Callable[..., Cheap], banditgrid: Callable[..., Ran]
) -> None:
    for text in ("older", "newer"):
        followed(cluster, cluster.send(order("newest", f"echo {text}")))
    assert banditgrid("logs", "newest", "--address", cluster.address).out == "newer\n"
    ran = banditgrid("logs", "newest", "-f", "--address", cluster.address)
    assert ran.out == "newer\nbanditgrid-newest-2 ended with exit code 0\n"
    unnamed = banditgrid("logs", "--address", cluster.address)
    assert unnamed.code == 2 and "name a study of the cluster at" in unnamed.err


# ---- trouble, told at once


def submit(banditgrid: Callable[..., Ran], tmp_path: Path, url: str, *more: str) -> Ran:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID.format(name="g", study="never", rounds=2))
    return banditgrid("submit", path, "--address", url, "--store", "/none/store", *more)


def test_wrong_and_missing_tokens_are_one_message(
    head: Head, banditgrid: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    ran = submit(banditgrid, tmp_path, head.url)
    assert ran.code == 2 and f"error: no token for the cluster at {head.url}" in ran.err
    monkeypatch.setenv("RAY_AUTH_TOKEN", "not-this-one")
    ran = submit(banditgrid, tmp_path, head.url)
    assert ran.code == 2 and "does not take the token from RAY_AUTH_TOKEN" in ran.err
    assert "not-this-one" not in ran.err and ran.err.count("\n") == 1
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ran = submit(banditgrid, tmp_path, head.url)
    assert ran.code == 2 and "wants a token and RAY_AUTH_MODE is `disabled`" in ran.err


def test_who_sets_no_mode_talks_with_a_token(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN", head.token)
    Cluster(head.url)
    assert os.environ["RAY_AUTH_MODE"] == "token" and "RAY_API_SERVER_ADDRESS" not in os.environ


def test_the_address_given_wins_over_the_environments(
    head: Head, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, banditgrid: Callable[..., Ran],
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    assert Cluster(head.url).jobs() == cluster.jobs()
    path = tmp_path / "grid.yaml"
    path.write_text(GRID.format(name="g", study="never", rounds=2))
    ran = banditgrid("submit", path)
    assert ran.code == 2 and "no cluster answers at http://127.0.0.1:9" in ran.err


class Other(BaseHTTPRequestHandler):
    """A server that is no Ray."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello")

    def log_message(self, *of: object) -> None:
        pass


def test_what_is_no_ray_or_does_not_answer_is_told(
    cluster: Cluster, banditgrid: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    ran = submit(banditgrid, tmp_path, f"http://127.0.0.1:{free_ports(1)[0]}")
    assert ran.code == 2 and "(no connection); start it with a dashboard" in ran.err
    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ran = submit(banditgrid, tmp_path, f"http://127.0.0.1:{server.server_port}")
        assert ran.code == 2 and "is not the dashboard of a Ray cluster" in ran.err
        server.shutdown()
    monkeypatch.setattr(endpoint, "TIMEOUT", (1.0, 1.0))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ran = submit(banditgrid, tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert ran.code == 2 and "(not in time)" in ran.err


def test_versions_are_those_of_the_cluster(head: Head, cluster: Cluster) -> None:
    theirs = endpoint.versions(head.url)
    assert theirs == endpoint.ours()
    with pytest.raises(InputError, match="this machine has Ray 2.1.0"):
        endpoint.check_versions(theirs, replace(theirs, ray="2.1.0"), head.url)


def test_bad_grids_and_secrets_are_told_before_anything_is_sent(
    cluster: Cluster, banditgrid: Callable[..., Ran], tmp_path: Path
) -> None:
    secret = "http://me:hunter2@mlflow:5000"
    ran = submit(banditgrid, tmp_path, cluster.address, "--tracking-uri", secret)
    assert ran.code == 2 and "MLFLOW_TRACKING_PASSWORD" in ran.err and "hunter2" not in ran.err
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: g\nstudy: never\nseedz: [0]\n")
    ran = banditgrid("submit", bad, "--address", cluster.address)
    assert ran.code == 2 and "bad.yaml:3: seedz: unknown key" in ran.err
    assert cluster.jobs("never") == []


# ---- a real study

HALF = """
def half(rewards_P_G, mask_P_G, *, context=None):
    return (rewards_P_G - 0.5) * mask_P_G


ADVANTAGES = {"half": half}
"""


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)]


def test_a_real_study_runs_and_its_second_submit_finds_it_done(
    head: Head, cluster: Cluster, banditgrid: Callable[..., Ran], tmp_path: Path
) -> None:
    """With a plug-in beside the grid, which travels too."""
    path, where = tmp_path / "grid.yaml", tmp_path / "a store"
    (tmp_path / "half.py").write_text(HALF)
    text = GRID.format(name="g", study="real", rounds=2)
    path.write_text(text + "plugins: [half]\noverrides: [{for: {dataset: tiny-sums}, set: "
                    "{advantage: half}}]\n")  # fmt: skip
    at = ("--address", cluster.address, "--store", where)
    ran = banditgrid("submit", path, *at, "--slots", "1")
    assert ran.code == 0, ran
    assert "banditgrid-real-1 runs study real; code and grids: " in ran.out
    (cell,) = load_grid(path).cells()
    assert cell.advantage == "half"
    (kept,) = Store(where).study("real").plugins.glob("*/half.py")
    assert kept.read_text() == HALF
    paths = Store(where).study("real").cell(cell.key)
    assert (read_json(paths.done) or {})["status"] == "finished"
    assert len(read_lines(paths.journal)) == 3
    again = banditgrid("submit", path, *at)
    assert again.code == 0 and "banditgrid-real-2 runs" in again.out
    assert "nothing to train" in again.out
    assert_no_secret_is_told(head)


def assert_no_secret_is_told(head: Head) -> None:
    """The token is in no job's information and in no log of the cluster."""
    headers = {"Authorization": f"Bearer {head.token}"}
    told = requests.get(f"{head.url}/api/jobs/", headers=headers, timeout=10).text
    assert "banditgrid-real-1" in told and head.token not in told
    logs = [path for path in head.logs.rglob("*") if path.is_file()]
    assert [path for path in logs if "job-driver-banditgrid-real-1" in path.name]
    assert not [path for path in logs if head.token.encode() in path.read_bytes()]


@pytest.mark.slow
def test_ctrl_c_leaves_a_study_running_and_stop_ends_it_at_a_checkpoint(
    head: Head, cluster: Cluster, banditgrid: Callable[..., Ran], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path, where = tmp_path / "grid.yaml", tmp_path / "store"
    path.write_text(GRID.format(name="g", study="long", rounds=4000))
    (cell,) = load_grid(path).cells()
    paths = Store(where).study("long").cell(cell.key)
    arguments = ("submit", path, "--address", cluster.address, "--store", where)
    with subprocess.Popen(
        command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as run:  # fmt: skip
        deadline = time.monotonic() + 120
        while len(read_lines(paths.journal)) < 3:
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=30)
    assert run.returncode == 130 and "banditgrid-long-1 goes on without this command" in out
    assert f"banditgrid logs long -f --address {cluster.address}" in out
    again = banditgrid(*arguments, "--no-wait")
    assert again.code == 0 and "attached to banditgrid-long-1" in again.out
    monkeypatch.setattr(afar.Place, "sees", lambda *of: False)
    stopped = banditgrid("stop", "long", "--address", cluster.address)
    assert stopped.code == 0 and f"left: {cell.label}" in stopped.out
    assert cluster.job("banditgrid-long-1").over
    journal, checkpoints = read_lines(paths.journal), sorted(paths.checkpoint.iterdir())
    assert int(checkpoints[-1].name) == journal[-1]["round"], "nothing is lost"
    assert read_lines(paths.attempts)[-1]["how"] == "stopped"
