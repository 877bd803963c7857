"""The tasks of reasoning-gym in the catalogue: none is mathematics, small models can do some.

A prompt shows two solved questions, made by hand, because small models follow an example of
`<answer>` tags sooner than a sentence about them. Plain data; leaves out the specs (`catalog.py`).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

# What makes the questions: another version may make others, so that it enters the keys.
VERSION: Final = "0.1.25"
TRAIN, TEST, SEED = 2000, 500, 0


class Task(NamedTuple):
    """One data set: the package's name of the task, its config, and two solved questions."""

    task: str
    about: str
    config: dict[str, Any]
    shots: tuple[tuple[str, str], tuple[str, str]]

    @property
    def prompt(self) -> str:
        """The user message; {question} is replaced."""
        solved = (f"Question: {q}\nAnswer: <answer>{a}</answer>\n\n" for q, a in self.shots)
        return "".join(solved) + "Question: {question}\nAnswer:"

    @property
    def options(self) -> dict[str, Any]:
        """What the source is asked for."""
        told = {"task": self.task, "train": TRAIN, "test": TEST, "seed": SEED}
        return told | {"config": self.config}


_SORT = "Sort these words in {} order (using ASCII/Unicode ordering): {}"
_SPELL = "Spell this word backward (example: sun -> nus): {}"
_COUNT = 'How many times does the letter "{}" appear in the text: "{}"?'
_FOLLOWS = "Consider these statements:\n1. {}\n2. {}\n\nDoes it logically follow that:\n{}?\n"
_FOLLOWS += "(Answer Yes or No)"
_KNIGHTS = (
    "Knights always tell the truth, and knaves always lie. You meet 2 inhabitants: {0}, and {1}. "
    '{2} So who is a knight and who is a knave? (Format your answer like: "{0} is a knight/knave, '
    'and {1} is a knight/knave")'
)

TASKS: Final[dict[str, Task]] = {
    "rg-knights-knaves": Task(
        "knights_knaves", "who of two tells the truth; partial credit", {"n_people": 2},
        (
            (
                _KNIGHTS.format("Ida", "Tom", 'Ida said, "Tom is a knave". '
                'Tom said, "Ida and I are knaves".'),
                "Ida is a knight, and Tom is a knave",
            ),
            (
                _KNIGHTS.format("Ben", "Una", 'Ben said, "Una and I are knights". '
                'Una said, "Ben is a knave".'),
                "Ben is a knave, and Una is a knight",
            ),
        ),
    ),
    "rg-syllogism": Task(
        "syllogism", "whether a conclusion follows: yes or no", {},
        (
            (
                _FOLLOWS.format("No cats are birds", "All birds are poets", "No cats are poets"),
                "No",
            ),
            (
                _FOLLOWS.format("All kings are cooks", "All cooks are tall", "All kings are tall"),
                "Yes",
            ),
        ),
    ),
    "rg-word-sorting": Task(
        "word_sorting", "three or four words; partial credit", {"min_words": 3, "max_words": 4},
        (
            (_SORT.format("ascending", "pear, fig, apple"), "apple, fig, pear"),
            (_SORT.format("descending", "cat, owl, Bee, dog"), "owl, dog, cat, Bee"),
        ),
    ),
    "rg-spell-backward": Task(
        "spell_backward", "words of 3 to 5 letters; partial credit",
        {"min_word_len": 3, "max_word_len": 5},
        ((_SPELL.format("cat"), "tac"), (_SPELL.format("lamp"), "pmal")),
    ),
    "rg-letter-counting": Task(
        "letter_counting", "a letter in 3 to 6 words", {"min_words": 3, "max_words": 6},
        (
            (_COUNT.format("e", "the tree was"), "3"),
            (_COUNT.format("o", "a dog and they"), "1"),
        ),
    ),
    "rg-needle-haystack": Task(
        "needle_haystack", "one fact among 5 to 12",
        {"min_num_statements": 5, "max_num_statements": 12},
        (
            (
                "Anna likes tea. Omar hates dogs. Lena adores jazz. \nWho hates dogs? Reply only "
                "with a name.",
                "Omar",
            ),
            ("Piet scorns cars. Mona likes chess. \nWho likes chess? Reply only with a name.",
             "Mona"),
        ),
    ),
}  # fmt: skip
