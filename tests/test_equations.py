"""Steps of worked solutions: what counts as an equation, and as the same one."""

import time

import pytest

from workers.equations import equations, steps


def test_the_embedded_solutions_have_the_steps_that_they_show():
    assert steps("27 + 23 = 50. 50 - 15 = 35. #### 35") == {"23+27=50", "50-15=35"}
    assert steps("5 * 3 = 15. 15 + 8 = 23. \\boxed{23}") == {"3*5=15", "15+8=23"}


@pytest.mark.parametrize(
    ("written", "as_"),
    [
        ("2+3=5", "3 + 2 = 5"),
        ("48/2 = <<48/2=24>>24 clips", "48 / 2 = 24"),
        ("$1,200 x 3 = $3,600.", "3 * 1200 = 3600"),
        (r"\[ 4 \times 5 = 20 \]", "4*5=20"),
        ("(4 + 5) * 2 = 18", "4 + 5 * 2 = 18"),
        ("0.50 * 4 = 2.0", ".5 * 4 = 2"),
        ("3 - 5 = -2", "3-5=-2"),
        ("6 ÷ 2 = 3", "6/2=3"),
    ],
)
def test_one_step_written_in_two_ways(written, as_):
    assert equations(written) == equations(as_) != frozenset()


@pytest.mark.parametrize(
    "text", ["", "= 5", "x = 5", "7", "7 = 7", "#### 35", "a + b = c", "1 + = 2"]
)
def test_what_is_no_step(text):
    assert equations(text) == frozenset()


def test_an_order_that_counts_and_another_result_are_another_step():
    assert equations("5 - 3 = 2") != equations("3 - 5 = 2")
    assert equations("5 + 3 = 8") != equations("5 + 3 = 9")


def test_both_equations_of_a_chain_count():
    assert equations("2 + 3 = 4 + 1 = 5") == {"2+3=4+1", "1+4=5"}


def test_an_annotated_solution_counts_its_annotations_alone():
    told = "She sold 48/2 = <<48/2=24>>24 clips, so 48 + 24 = <<48+24=72>>72 clips. 1 + 1 = 2"
    assert steps(told) == {"48/2=24", "24+48=72"}
    assert equations(told) == steps(told) | {"1+1=2"}


def test_a_long_response_takes_no_long_time():
    began = time.perf_counter()
    for text in ("1+" * 50_000, "=1" * 50_000, "1+1=" * 25_000, "1," * 50_000, "<<" * 50_000):
        equations(text)
    assert time.perf_counter() - began < 5
