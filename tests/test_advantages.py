"""Each estimator on hand-sized groups, and against a second formula written apart."""

import math
import random
import statistics
from math import sqrt

import pytest
import torch

from workers.advantages import ADVANTAGES, GROUP_RELATIVE, Context

T, F = True, False
NAN, INF = math.nan, math.inf
ALL = [[T, T, T]]
GRADED, CENTRED = [[0.25, 0.5, 1]], [[-1 / 3, -1 / 12, 5 / 12]]  # mean 7/12, variance 7/48
# A pair whose middle slot is masked, and an empty group.
HOLED, HOLES = [[1, NAN, 0], [INF, -INF, NAN]], [[T, F, T], [F, F, F]]
# The group's last column is a replayed sample, which counts like any other.
REPLAYED = {"fresh": [[T, T, F]], "ages": [[0, 0, 3]]}
LONE, LONE_MASK = [[1, 9], [1, 0]], [[T, F], [T, T]]
QUARTER, HALF_KNOWN = {"history": [0.25]}, {"history": [0.25, NAN], "singleton": "zero"}
PP, BASELINE, PAIRS = "reinforce_pp", "reinforce_pp_baseline", [[T, T], [T, T]]

# name, rewards, mask, context (singleton rule and lists), advantages
HAND = {
    "raw gives the reward": ("raw", [[1, 0], [0, 0]], PAIRS, {}, [[1, 0], [0, 0]]),
    "raw over one": ("raw", [[1], [0]], [[T], [T]], {"singleton": "zero"}, [[1], [0]]),
    "raw gives graded rewards": ("raw", GRADED, ALL, {}, GRADED),
    "raw masks": ("raw", HOLED, HOLES, {}, [[1, 0, 0], [0, 0, 0]]),
    "grpo over one of two slots": ("grpo", [[1, 9]], [[T, F]], {}, [[1, 0]]),
    "max_rl without signal": ("max_rl", [[0, 0], [1, -1]], PAIRS, {}, [[0, 0], [0, 0]]),
    "max_rl below no signal": ("max_rl", [[0.5, -1]], [[T, T]], {}, [[0, 0]]),
    # mean 1/4, variance (9 + 3) / 16 / 3 = 1/4
    "++ over a batch": (PP, [[1, 0], [0, 0]], PAIRS, {}, [[1.5, -0.5], [-0.5, -0.5]]),
    "++ by tokens": (PP, [[1, 0]], [[T, T]], {"lengths": [[1, 3]]}, [[1.5, -0.5]]),
    "++ of groups of equal rewards": (  # variance 8 (1/4) / 7 = 2/7
        *(PP, [[1, 1], [0, 0]], PAIRS, {"lengths": [[1, 3], [2, 2]]}),
        [[sqrt(7 / 8)] * 2, [-sqrt(7 / 8)] * 2],
    ),
    "++ over one": (PP, [[1], [0]], [[T], [T]], {"singleton": "zero"}, [[sqrt(0.5)], [-sqrt(0.5)]]),
    "++ masks": (
        *(PP, HOLED, HOLES, {"lengths": [[1, NAN, 3], [INF, 5, NAN]]}),
        [[1.5, 0, -0.5], [0, 0, 0]],
    ),
    "++ of one token": (PP, [[1, 5]], [[T, F]], {}, [[0, 0]]),
    "++ of one response": (PP, [[1]], [[T]], {"lengths": [[3]]}, [[0]]),
    "++ baseline over a batch": (  # 1/2, -1/2, 0, 0: variance (1/4 + 1/4) / 3 = 1/6
        *(BASELINE, [[1, 0], [1, 1]], PAIRS, {}),
        [[sqrt(1.5), -sqrt(1.5)], [0, 0]],
    ),
    "++ baseline by tokens": (  # mean -1/8, variance (25 + 3 * 9 + 4) / 64 / 7 = 1/8
        *(BASELINE, [[1, 0], [1, 1]], PAIRS, {"lengths": [[1, 3], [2, 2]]}),
        [[5 / 8 * sqrt(8), -3 / 8 * sqrt(8)], [sqrt(8) / 8] * 2],
    ),
    "++ baseline over one: raw": (  # 1, 1/2, -1/2: mean 1/3, variance (16 + 1 + 25) / 36 / 2
        *(BASELINE, LONE, LONE_MASK, {"singleton": "raw"}),
        [[2 / 3 * sqrt(12 / 7), 0], [1 / 6 * sqrt(12 / 7), -5 / 6 * sqrt(12 / 7)]],
    ),
    "++ baseline over one: zero": (  # 0, 1/2, -1/2: variance 1/4
        *(BASELINE, LONE, LONE_MASK, {"singleton": "zero"}),
        [[0, 0], [1, -1]],
    ),
    "++ baseline over one: batch_mean": (  # 1/3, 1/2, -1/2: variance (16 + 49 + 121) / 324 / 2
        *(BASELINE, LONE, LONE_MASK, {"singleton": "batch_mean"}),
        [[2 / 9 * sqrt(108 / 31), 0], [7 / 18 * sqrt(108 / 31), -11 / 18 * sqrt(108 / 31)]],
    ),
    "opo by tokens": ("opo", [[1, 0]], [[T, T]], {"lengths": [[1, 3]]}, [[3 / 4, -1 / 4]]),
    "opo, graded": ("opo", GRADED, ALL, {"lengths": [[4, 2, 1]]}, [[-5 / 28, 1 / 14, 4 / 7]]),
    "opo masks": (
        *("opo", HOLED, HOLES, {"lengths": [[3, 100, 1], [NAN, INF, 4]]}),
        [[1 / 4, 0, -3 / 4], [0, 0, 0]],
    ),
    "opo, replay": (
        *("opo", [[1, 0, 0]], ALL, REPLAYED | {"lengths": [[1, 1, 2]]}),
        [[3 / 4, -1 / 4, -1 / 4]],
    ),
    "ema": ("ema", GRADED, ALL, QUARTER, [[0, 0.25, 0.75]]),
    "ema falls back": ("ema", [[1, 0]] * 2, PAIRS, HALF_KNOWN, [[0.75, -0.25], [0.5, -0.5]]),
    "ema over one": ("ema", [[1], [1]], [[T], [T]], HALF_KNOWN, [[0.75], [0]]),
    "ema of equal rewards": ("ema", [[1, 1]] * 2, PAIRS, HALF_KNOWN, [[0.75, 0.75], [0, 0]]),
    "ema masks": ("ema", HOLED, HOLES, {"history": [0.25, 0.5]}, [[0.75, 0, -0.25], [0, 0, 0]]),
    "ema, replay": ("ema", [[1, 0, 1]], ALL, REPLAYED | QUARTER, [[0.75, -0.25, 0.75]]),
    "batch mean": ("batch_mean", [[1, 0], [0, 0]], PAIRS, {}, [[0.75, -0.25], [-0.25, -0.25]]),
    "batch mean over one": ("batch_mean", [[1], [0]], [[T], [T]], {}, [[0.5], [-0.5]]),
}
# Over a single group, without lengths and history, all but raw are r - mean times a number: here
# for rewards 1, 0 (variance 1/2), for 1, 0, 0 (variance 1/3) and for the graded ones.
TIMES = {name: (1, 1, 1) for name in ("mean_centered", "opo", "ema", "batch_mean")}
TIMES |= {name: (sqrt(2), sqrt(3), sqrt(48 / 7)) for name in ("grpo", PP, BASELINE)}
TIMES |= {"rloo": (2, 3 / 2, 3 / 2), "max_rl": (2, 3, 12 / 7)}
for name, (pair, three, graded) in TIMES.items():
    HAND |= {
        f"{name} of a pair with a hole": (
            name,
            HOLED,
            HOLES,
            {},
            [[pair / 2, 0, -pair / 2], [0] * 3],
        ),
        f"{name} of three, one replayed": (
            *(name, [[1, 0, 0]], ALL, REPLAYED),
            [[2 / 3 * three, -1 / 3 * three, -1 / 3 * three]],
        ),
        f"{name}, graded": (name, GRADED, ALL, {}, [[c * graded for c in CENTRED[0]]]),
    }
ALONE = {"raw": [[1], [0]], "zero": [[0], [0]], "batch_mean": [[0.5], [-0.5]]}
HAND |= {
    f"{name} over one: {rule}": (name, [[1], [0]], [[T], [T]], {"singleton": rule}, expected)
    for name in ("mean_centered", "grpo", "rloo", "max_rl", "opo", "ema")
    for rule, expected in ALONE.items()
}


def context_of(singleton="raw", fresh=None, ages=None, lengths=None, history=None):
    lists = (fresh, ages, lengths, history)
    fresh, ages, lengths, history = (None if x is None else torch.tensor(x) for x in lists)
    return Context(singleton, fresh, ages, lengths_P_G=lengths, history_P=history)


@pytest.mark.parametrize(
    ("name", "rewards", "mask", "context", "expected"), HAND.values(), ids=HAND.keys()
)
def test_by_hand(name, rewards, mask, context, expected):
    rewards_P_G, mask_P_G = torch.tensor(rewards, dtype=torch.float64), torch.tensor(mask)
    made_P_G = ADVANTAGES[name](rewards_P_G, mask_P_G, context=context_of(**context))
    torch.testing.assert_close(
        made_P_G, torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("reward", [0, 0.1, 1])
@pytest.mark.parametrize("name", [name for name in ADVANTAGES if name != "raw"])
def test_a_batch_of_equal_rewards_gives_exactly_0(name, reward):
    rewards_P_G = torch.full((2, 8), reward)  # in float32 seven times 0.1 is not 0.7
    mask_P_G = torch.tensor([[T] * 8, [T] * 7 + [F]])
    made_P_G = ADVANTAGES[name](rewards_P_G, mask_P_G)
    assert not made_P_G.any()


@pytest.mark.parametrize("name", ADVANTAGES)
def test_whatever_a_masked_entry_holds_is_ignored(name):
    rewards_P_G = torch.tensor([[1.0, NAN, 0.0], [INF, 1.0, NAN], [NAN, -INF, 3.0]])
    mask_P_G = torch.tensor([[T, F, T], [F, T, F], [F, F, F]])
    context = context_of(lengths=[[2, NAN, 3], [INF, 4, -INF], [NAN] * 3], history=[0.5, NAN, NAN])
    made_P_G = ADVANTAGES[name](rewards_P_G, mask_P_G, context=context)
    clean = context_of(lengths=[[2, 1, 3], [7, 4, 2], [1] * 3], history=[0.5, NAN, NAN])
    clean_P_G = rewards_P_G.nan_to_num(7, posinf=7, neginf=7)
    clean_P_G = ADVANTAGES[name](clean_P_G, mask_P_G, context=clean)
    assert torch.equal(made_P_G, clean_P_G) and not made_P_G[~mask_P_G].any()


# The estimators once more, over plain lists: a group is a list of (reward, tokens).
def rewards_of(group):
    return [reward for reward, _ in group]


def mean_of(group):
    return statistics.fmean(rewards_of(group))


def tokens_of(group):
    return [reward for reward, length in group for _ in range(length)]


def less(group, baseline):
    return [r - baseline for r in rewards_of(group)]


def whitened(group):
    """Of the whole batch as one group."""
    mean, variance = statistics.fmean(tokens_of(group)), statistics.variance(tokens_of(group))
    return [(r - mean) / sqrt(variance + 1e-8) for r in rewards_of(group)]


OF_A_GROUP = {
    "mean_centered": lambda group: less(group, mean_of(group)),
    "grpo": lambda group: [
        r / (statistics.stdev(rewards_of(group)) + 1e-6) for r in less(group, mean_of(group))
    ],
    "rloo": lambda group: [
        r - mean_of(group[:i] + group[i + 1 :]) for i, r in enumerate(rewards_of(group))
    ],
    "max_rl": lambda group: [
        r / mean_of(group) - 1 if any(rewards_of(group)) else 0 for r in rewards_of(group)
    ],
    "opo": lambda group: less(group, statistics.fmean(tokens_of(group))),
}


def second_formula(name, groups, history, rule):
    """Advantages of all samples, one group after the other."""
    batch = [sample for group in groups for sample in group]
    if name in ("raw", "batch_mean"):
        return less(batch, mean_of(batch) if name == "batch_mean" else 0)
    if name == PP:
        return whitened(batch)
    if name == BASELINE:
        centred = second_formula("mean_centered", groups, history, rule)
        return whitened([(c, length) for c, (_, length) in zip(centred, batch, strict=True)])
    if name != "ema":
        history = [NAN] * len(groups)
    advantages = []
    for group, baseline in zip(groups, history, strict=True):
        if not math.isnan(baseline):
            advantages += less(group, baseline)
        elif len(group) == 1:
            one = rewards_of(group)[0]
            advantages.append({"raw": one, "zero": 0, "batch_mean": one - mean_of(batch)}[rule])
        elif group:
            advantages += OF_A_GROUP["mean_centered" if name == "ema" else name](group)
    return advantages


@pytest.mark.parametrize("bare", [False, True], ids=["lengths and history", "neither"])
@pytest.mark.parametrize("rule", ALONE)
@pytest.mark.parametrize("name", ADVANTAGES)
def test_against_a_second_formula_on_ragged_groups(name, rule, bare):
    draw = random.Random(f"{name} {rule} {bare}")
    sizes = [0, 1, 1, 1, 2, 2, 2, 2, 3, 4, 5, 6, 7, 8]
    columns = [set(draw.sample(range(8), size)) for size in sizes]
    mask_P_G = torch.tensor([[g in kept for g in range(8)] for kept in columns])
    rewards_P_G = torch.tensor(
        [[draw.choice([0, 0, 0.25, 0.5, 1]) for _ in range(8)] for _ in sizes]
    )
    lengths_P_G = torch.tensor(
        [[1 if bare else draw.randint(1, 40) for _ in range(8)] for _ in sizes]
    )
    history = [NAN if bare or draw.random() < 0.3 else draw.random() for _ in sizes]
    context = Context(rule)
    if not bare:
        context = Context(rule, lengths_P_G=lengths_P_G, history_P=torch.tensor(history).double())
    made_P_G = ADVANTAGES[name](rewards_P_G.double(), mask_P_G, context=context)
    samples = torch.stack([rewards_P_G, lengths_P_G], -1).tolist()
    groups = [
        [(row[g][0], int(row[g][1])) for g in range(8) if g in kept]
        for row, kept in zip(samples, columns, strict=True)
    ]
    assert made_P_G[mask_P_G].tolist() == pytest.approx(second_formula(name, groups, history, rule))
    assert not made_P_G[~mask_P_G].any()


@pytest.mark.parametrize("name", ADVANTAGES)
def test_group_relative_are_those_that_always_follow_the_singleton_rule(name):
    def follows(**context):
        rewards_P_G, mask_P_G = torch.tensor(LONE).double(), torch.tensor(LONE_MASK)
        made = (context_of(rule, **context) for rule in ALONE)
        return (
            len({ADVANTAGES[name](rewards_P_G, mask_P_G, context=c)[0, 0].item() for c in made})
            == 3
        )

    known = follows(lengths=[[2, 1], [3, 4]], history=[0.5, 0.5])
    assert known == (name in GROUP_RELATIVE)
    assert follows() == (known or name == "ema")


@pytest.mark.parametrize("name", sorted(GROUP_RELATIVE - {BASELINE} | {"raw", "ema"}))
def test_without_a_context_the_singleton_rule_is_verls(name):
    one = torch.ones(1, 1)
    assert ADVANTAGES[name](one, one.bool()).item() == 1


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ADVANTAGES)
def test_dtype_and_device_are_kept(name, dtype, device):
    rewards_P_G = torch.ones(2, 3, dtype=dtype, device=device)
    other = torch.ones(2, 3, dtype=torch.int64, device=device)
    history_P = torch.ones(2, dtype=torch.float64, device=device)
    for rule in ALONE:
        context = Context(rule, lengths_P_G=other, history_P=history_P)
        made_P_G = ADVANTAGES[name](rewards_P_G, other.bool(), context=context)
        assert (made_P_G.dtype, made_P_G.device.type) == (dtype, device)
