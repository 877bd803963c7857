"""Runs -> tables, figures and findings, from a store's files, a bundle or MLflow.

    from analysis import Study
    study = Study.open("store/paper")

Needs no torch, ray or training code.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`Study` on demand: importing one module of the package loads no other."""
    if name == "Study":
        from analysis.study import Study

        return Study
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
