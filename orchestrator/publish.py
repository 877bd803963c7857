"""Tables and figures as artifacts of MLflow: one run named `analysis` in the study's experiment.

The run has no cell key, so that nothing takes it for a cell's. The files on disk are what counts: a
tracking store that is absent or fails costs a line, never the command. Leaves out making the files
and the verdicts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from grids.outcome import TAG_NOTE
from grids.paths import Store
from orchestrator.marks import redacted, sqlite_path
from orchestrator.showing import Verdicts, show_verdicts
from orchestrator.tracking import brief, ensure_experiment, patient_client

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

RUN_NAME: Final = "analysis"
NOTE: Final = (
    "**Tables, figures and report of this study**, as its last `banditgrid tables` and `banditgrid "
    "report` wrote them: see its artifacts. It is no cell."
)
TAG_KIND: Final = "banditgrid.kind"


def tracking_of(store: Store | None, given: str | None) -> str | None:
    """Where to publish: the address that was given, else the store's own database if there."""
    if given or store is None:
        return given
    path = sqlite_path(store.tracking_uri)
    return store.tracking_uri if path is not None and path.is_file() else None


def publish(
    files: Sequence[Path], under: Path, folder: str, studies: Iterable[str], uri: str,
    verdicts: Mapping[str, Verdicts] | None = None,
) -> bool:  # fmt: skip
    """Log files to the analysis run of every study, below `folder`, as they lie below `under`; and
    verdicts, study -> grid -> its own, to the descriptions of the study and of its runs.

    Replaces what was logged under the same names. Answers False, with a line on standard error,
    where MLflow did not take something.
    """
    doing = "the files"
    try:
        client = patient_client(uri)
        for study in studies:
            doing = "the files"
            experiment = ensure_experiment(client, study, _artifacts(uri))
            run_id = analysis_run(client, experiment)
            for path in files:
                parent = path.relative_to(under).parent
                client.log_artifact(run_id, str(path), (Path(folder) / parent).as_posix())
            client.set_tag(run_id, TAG_NOTE, NOTE)
            client.set_terminated(run_id, "FINISHED")
            doing = "the verdicts"
            if verdicts is not None:
                by_grid = verdicts.get(study, {})
                show_verdicts(client, experiment, run_id, by_grid, datetime.now(UTC))
    except Exception as error:
        print(
            f"MLflow at {redacted(uri)} did not take {doing} ({brief(error)}); all is on disk; "
            "--no-log leaves MLflow out",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        return False
    return True


def analysis_run(client: MlflowClient, experiment: str) -> str:
    """The id of the experiment's analysis run, the oldest; made where there is none."""
    found = client.search_runs(
        [experiment], f"tags.`{TAG_KIND}` = '{RUN_NAME}'", max_results=1,
        order_by=["attributes.start_time ASC"],
    )  # fmt: skip
    if found:
        return str(found[0].info.run_id)
    made = client.create_run(experiment, tags={TAG_KIND: RUN_NAME}, run_name=RUN_NAME)
    return str(made.info.run_id)


def _artifacts(uri: str) -> str | None:
    """Artifacts of an experiment that a SQLite file lacks so far go beside that file."""
    path = sqlite_path(uri)
    return (path.resolve().parent / "artifacts").as_uri() if path is not None else None
