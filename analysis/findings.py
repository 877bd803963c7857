"""The findings of a table in words: its contrasts, which choices matter, the paper's signatures.

Every sentence is computed; a claim holds, does not hold, or cannot be told. Leaves out the
statistics (`declared.py`, `across.py`, `choices.py`) and the rules of signatures (`signatures.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from analysis.across import across, by_contrast
from analysis.arms import NAMED_AXES
from analysis.choices import EVERY_PAIR, FACTORIAL, Choices
from analysis.contrasts import ALPHA, Comparison, holm
from analysis.declared import Result
from analysis.finding import Finding, Pair, seeds_told
from analysis.intervals import MISSING
from analysis.sheet import one_line, probability
from analysis.signatures import signatures
from analysis.steps import costs_told
from analysis.study import Study
from analysis.tables import Table
from grids.cell import Cell

HOLDS = {True: "holds", False: "does not hold", None: "cannot be told"}
READING = (
    "A finding holds or does not where a whole 95% interval says so, and else cannot be told. "
    "Signatures' intervals are not corrected for how many they are."
)
PAIR = {"model", "dataset"}
SHOWN = 3  # of the largest shares


def findings(table: Table, study: Study) -> tuple[Finding, ...]:
    """All findings of a table: contrasts, then choices, then signatures by name."""
    pairs = dict.fromkeys(row.pair for row in table.rows)
    signed = [
        finding
        for name in pairs
        for finding in signatures(
            Pair(
                name,
                tuple(row for row in table.rows if row.pair == name),
                tuple(result for result in table.results if result.pair == name),
                study,
            )
        )
    ]
    names = list(dict.fromkeys(finding.name for finding in signed))
    signed.sort(key=lambda finding: names.index(finding.name))
    return (*_of_contrasts(table.results), *_of_choices(table), *signed)


def findings_markdown(findings: Iterable[Finding]) -> str:
    """A bullet for each name, and under it one for each finding: those that hold first.

    Equal texts are told once, with all places that they are of. Empty without findings.
    """
    by_name: dict[str, list[Finding]] = {}
    for finding in findings:
        by_name.setdefault(finding.name, []).append(finding)
    lines: list[str] = []
    for name, found in by_name.items():
        counts = {told: sum(one.holds is holds for one in found) for holds, told in HOLDS.items()}
        told = ", ".join(f"{word} in {n}" for word, n in counts.items() if n)
        lines.append(f"- **{name}**: {told}" if len(found) > 1 else f"- **{name}**")
        lines += [f"  - *{word}*, {where}: {text}" for word, where, text in _bullets(found)]
    return "".join(f"{line}\n" for line in lines)


def _bullets(found: Sequence[Finding]) -> Iterator[tuple[str, str, str]]:
    """(holds or not, places, text), in the order of `HOLDS`."""
    places: dict[tuple[bool | None, str], list[str]] = {}
    for holds in HOLDS:
        for finding in found:
            if finding.holds is holds:
                places.setdefault((holds, one_line(finding.text)), []).append(finding.where)
    for (holds, text), where in places.items():
        yield HOLDS[holds], "; ".join(where), text


# ---- contrasts


def _of_contrasts(results: Sequence[Result]) -> Iterator[Finding]:
    """Each contrast: across its pairs, then in each of them."""
    for name, found in by_contrast(results).items():
        if len(found) > 1:
            over = across(found)
            lines = tuple(_line(result, result.pair in over.used) for result in found)
            yield Finding(
                f"{name}: differs between pairs", EVERY_PAIR, over.differs, over.text, lines
            )
        for result in found:
            claim = f"{name}: {result.contrast.claim}"
            yield Finding(claim, result.where, _claimed(result), _told(result), _behind(result))


def _line(result: Result, used: bool) -> str:
    """`OLMo-MATH: +0.010 [-0.010, +0.030], equivalent`."""
    made = result.comparison
    difference = made.difference.format(sign=True) if made else MISSING
    verdict = "no verdict" if result.verdict == "none" else result.verdict
    return f"{result.pair}: {difference}, {verdict}{'' if used else ', not in the mean'}"


def _claimed(result: Result) -> bool | None:
    """Whether the declared claim holds; what is inconclusive refutes nothing."""
    if result.verdict in ("none", "inconclusive") and not result.claim_holds:
        return None
    return result.claim_holds


def _told(result: Result) -> str:
    """`(32,8,0) grpo against (32,8,0) raw: equivalent at lr 1e-06, within 0.02: ...`"""
    made, told = result.comparison, result.told
    if result.verdict == "none":
        told = f"no verdict ({result.withheld or result.absent})"
    elif result.verdict == "equivalent":
        told += f", within {result.contrast.margin:g}"
    a, b = (_arm(side[0], result) for side in (result.stratum.a, result.stratum.b))
    parts = [f"{b} against {a}", told]
    if made is not None:
        parts.append(
            f"{made.difference.format(sign=True)}, {len(made.by_seed)} of "
            f"{seeds_told(len(result.stratum.a))}, {made.questions} questions "
            f"({_p_values(made, result)})"
        )
    ends = [": ".join(parts), result.standing.label]
    if (zero := result.at_zero) is not None:
        ends.append(f"with diverged runs at 0 {zero.difference.format(sign=True)}, {zero.verdict}")
    return "; ".join(ends)


def _p_values(made: Comparison, result: Result) -> str:
    told = [f"p {probability(made.p)}"]
    if made.family_size > 1:
        told.append(f"after Holm over {made.family_size} {probability(made.p_family)}")
    told.append(f"TOST within {made.margin:g} {probability(made.tost_p)}")
    if result.contrast.claim == "non-inferior":
        told.append(f"worse by {made.margin:g} {probability(made.non_inferior_p)}")
    return ", ".join(told)


def _behind(result: Result) -> tuple[str, ...]:
    """What the verdict rests on, a line each."""
    if (made := result.comparison) is None:
        return result.notes
    by_seed = ", ".join(f"s{seed} {value:+.3f}" for seed, value in made.by_seed.items())
    lines = [
        f"by seed: {by_seed}",
        f"right in one arm alone: {made.discordant.a_only:g} in a, {made.discordant.b_only:g} "
        f"in b, of {made.discordant.pairs:,} answers",
        f"smallest effect that this design finds: {made.smallest_effect:.3f}",
    ]
    lines += [f"costs, b over a: {told}"] if (told := costs_told(result.cost_ratios)) else []
    return (*lines, *result.notes)


def _arm(cell: Cell, result: Result) -> str:
    """`(32,8,0) grpo lr=1e-05`: with what else the contrast names."""
    b, n, m = cell.shape
    named = {**result.contrast.a, **result.contrast.b}
    others = [f"{name}={getattr(cell, name)}" for name in named if name not in NAMED_AXES]
    return " ".join([f"({b},{n},{m})", cell.advantage, *others])


# ---- choices


def _of_choices(table: Table) -> Iterator[Finding]:
    """Which settings matter, then which arms may be best, wherever there is a choice."""
    pairs = list(dict.fromkeys(row.pair for row in table.rows))
    arms = [row.pair for row in table.rows if row.arm.twin is None]
    if len(arms) == len(pairs):  # one arm a pair
        return
    several = [made for made in table.choices if arms.count(made.pair) != 1]
    yield from (_of_shares(made) for made in several)
    yield from (_of_best(made) for made in several if made.pair in pairs)


def _of_shares(made: Choices) -> Finding:
    """A choice matters where its share is above 0, as the F test says, after Holm over all that
    are choices: model and data set are none, but what a choice does may depend on them."""
    name = "some choice matters"
    shares = sorted(made.shares, key=lambda share: -share.estimate.value)
    chosen = [share for share in shares if share.order and not _parts(share.name) <= PAIR]
    if not chosen:
        return Finding(name, made.pair, None, f"no variance shares: {made.no_shares}")
    p_values = holm([share.p for share in chosen])
    sure = [s.name for s, p in zip(chosen, p_values, strict=True) if p < ALPHA]
    told = ", ".join(f"{share.name} {share.estimate.format(2)}" for share in chosen[:SHOWN])
    tested = (
        f"above 0 after Holm over {len(chosen)}: {', '.join(sure) or 'none surely'}"
        if made.method == FACTORIAL
        else "a surrogate tests none of them"
    )
    text = (
        f"largest shares of the variance of test Pass@1: {told} ({made.method}, "
        f"{shares[0].estimate.n} runs); {tested}"
    )
    lines = [f"{s.name} {s.estimate.format(2)}, p {probability(s.p)}" for s in shares]
    reasons = [reason for reason in (made.reading, made.no_shares) if reason]
    return Finding(name, made.pair, bool(sure) or None, text, (*lines, *reasons))


def _parts(name: str) -> set[str]:
    """Settings of a factor or an interaction: `model:batch×rollouts`."""
    return set(name.replace("×", ":").split(":"))


def _of_best(made: Choices) -> Finding:
    """Some arm is surely not the best; which ones may be."""
    name = "some arm is surely not the best"
    if made.best is None:
        return Finding(name, made.pair, None, f"no arms compared: {made.no_best}")
    arms = made.best.arms
    kept = [arm for arm in arms if arm.in_set]
    top = max(arms, key=lambda arm: arm.mean.value)
    text = (
        f"{len(kept)} of {len(arms)} arms may be best at {1 - made.best.alpha:.0%}: "
        f"{', '.join(arm.label for arm in kept)}; highest mean {top.label} {top.mean}, "
        f"{seeds_told(made.best.seeds)}, {made.best.questions} questions"
    )
    text += f"; {made.best.reason}" if made.best.reason else ""
    lines = tuple(f"{arm.label} {arm.mean}, p {probability(arm.p)}" for arm in arms)
    return Finding(name, made.pair, True if len(kept) < len(arms) else None, text, lines)
