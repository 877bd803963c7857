"""Make the embedded tasks and models: `python -m workers.embedded.make [--out DIR]`.

Two tasks are written as JSON lines: tiny-sums, two-step stories whose answers end in `#### N` as
GSM8K's do, and tiny-boxed, order of operations with answers in `\\boxed{N}` as in MATH. Three
models of two layers are then pretrained on worked solutions to fresh questions of both tasks.

A share of those solutions slips, always in the same way: what is given away is added, or an
expression is worked out from left to right. The share grows with a question's hardness, and each
(model, task) pair has its own. So a model holds the right way and a wrong way, and reinforcement
fine-tuning can choose between them for all questions at once. tiny-olmo2 never saw the right way
with the harder expressions of tiny-boxed: that pair is beyond its model.

Left out: any claim about real models. The tasks were made to show learning; they check a pipeline.
One seed, one thread: a rerun on the same machine and versions gives the same bytes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils.logging import disable_progress_bar

SEED = 0
N_TRAIN, N_TEST = 512, 500
STEPS, BATCH, LR = 1000, 128, 5e-3
IGNORED = -100  # the label that transformers' loss leaves out

NAMES = ["Ana", "Ben", "Carla", "Dev", "Emma", "Femi", "Goran", "Hana"]
THINGS = ["apples", "books", "coins", "shells", "stamps", "marbles"]
STORIES = {  # what is to be done with c; only a story that takes away can be misread
    "{name} has {a} {thing}. {name} gets {b} more and gives {c} away. How many are left?": "-",
    "{name} finds {a} {thing}, then {b} more, and loses {c}. How many does {name} have?": "-",
    "There are {a} {thing} in a box. {name} adds {b} and takes {c} out. How many remain?": "-",
    "{name} has {a} {thing}, gets {b} more and finds {c}. How many does {name} have?": "+",
}
ORDERS = ["What is ${}$?", "Compute ${}$.", "Find the value of ${}$.", "Evaluate ${}$."]
EASY_ORDERS = 0.15  # the share of expressions in which going from left to right is right

SPECIAL = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
SPLIT = r"####|\\boxed\{|[0-9]+|[A-Za-z]+|[^\sA-Za-z0-9]"
LARGEST = 199  # each number up to here is one token, so that decoding never breaks one up
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %} Answer:{% endif %}"
)
# AutoTokenizer takes any checkpoint of model type qwen2 for one with Qwen's own tokenizer, whatever
# its `tokenizer_class` says, unless an `auto_map` is there too. It follows none for this type.
AUTO_MAPS = {"tiny-qwen2": {"auto_map": {"AutoTokenizer": [None, None]}}}


class Problem(NamedTuple):
    """A question, its right solution, and the one that a slip gives (the same if none can)."""

    question: str
    right: str
    slipped: str
    hardness: float  # in [0, 1]


class Task(NamedTuple):
    """How a problem is drawn, and the columns in which it is written."""

    draw: Callable[[random.Random], Problem]
    question: str
    answer: str


class Slips(NamedTuple):
    """The log-odds of a slip at hardness 0 and at hardness 1; linear between."""

    low: float
    high: float


class Recipe(NamedTuple):
    """A model's classes and, by task, how often the solutions that it learns from slip."""

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    slips: dict[str, Slips]


def draw_sum(rng: random.Random) -> Problem:
    """A story of a things and b more, of which c are then taken away; a slip adds c too."""
    a, b, c = rng.randint(11, 40), rng.randint(11, 40), rng.randint(3, 20)
    story, sign = rng.choice(list(STORIES.items()))
    words = {"name": rng.choice(NAMES), "thing": rng.choice(THINGS), "a": a, "b": b, "c": c}

    def solution(sign: str) -> str:
        left = a + b + c if sign == "+" else a + b - c
        return f"{a} + {b} = {a + b}. {a + b} {sign} {c} = {left}. #### {left}"

    return Problem(story.format(**words), solution(sign), solution("+"), (c - 3) / 17)


def draw_boxed(rng: random.Random) -> Problem:
    """a + b * c + d, which a slip works out from left to right, or b * c + a + d, to be done so."""
    a, b, c, d = rng.randint(1, 20), rng.randint(2, 9), rng.randint(2, 6), rng.randint(1, 9)
    easy = rng.random() < EASY_ORDERS
    expression = f"{b} * {c} + {a} + {d}" if easy else f"{a} + {b} * {c} + {d}"

    def solution(steps: str, value: int) -> str:
        return f"{steps} = {value}. {value} + {d} = {value + d}. \\boxed{{{value + d}}}"

    right = solution(f"{b} * {c} = {b * c}. {b * c} + {a}", b * c + a)
    slipped = solution(f"{a} + {b} = {a + b}. {a + b} * {c}", (a + b) * c)
    question = rng.choice(ORDERS).format(expression)
    return Problem(question, right, right if easy else slipped, (a - 1) / 19)


TASKS = {
    "tiny-sums": Task(draw_sum, "question", "answer"),
    "tiny-boxed": Task(draw_boxed, "problem", "solution"),
}
RECIPES = {
    "tiny-qwen2": Recipe(
        Qwen2Config,
        Qwen2ForCausalLM,
        {"tiny-sums": Slips(-2, 4), "tiny-boxed": Slips(-1, 5)},
    ),
    "tiny-llama": Recipe(
        LlamaConfig,
        LlamaForCausalLM,
        {"tiny-sums": Slips(0, 6), "tiny-boxed": Slips(0.5, 7)},
    ),
    "tiny-olmo2": Recipe(
        Olmo2Config,
        Olmo2ForCausalLM,
        {"tiny-sums": Slips(-1, 6), "tiny-boxed": Slips(30, 30)},  # in effect always
    ),
}


def write_tasks(out: Path) -> set[str]:
    """Write both tasks; return all their questions, for pretraining must see none of them."""
    held_out: set[str] = set()
    for name, task in TASKS.items():
        rng = random.Random(f"{SEED} {name}")
        solutions: dict[str, str] = {}
        while len(solutions) < N_TRAIN + N_TEST:
            problem = task.draw(rng)
            solutions[problem.question] = problem.right
        rows = [json.dumps({task.question: q, task.answer: s}) for q, s in solutions.items()]
        folder = out / "tasks" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.jsonl").write_text("\n".join(rows[:N_TRAIN]) + "\n")
        (folder / "test.jsonl").write_text("\n".join(rows[N_TRAIN:]) + "\n")
        held_out |= solutions.keys()
    return held_out


def make_tokenizer(model: str) -> PreTrainedTokenizerFast:
    """One token a word, a sign or a number: the closed vocabulary of the two tasks."""
    splitter = Split(Regex(SPLIT), "removed", invert=True)
    blank = {key: " " for key in ("name", "thing", "a", "b", "c")}
    texts = [story.format(**blank) for story in STORIES] + [order.format(" ") for order in ORDERS]
    texts += [*NAMES, *THINGS, "Answer:", "+ - * = . ####", "\\boxed{ }"]
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(text)}
    numbers = [str(number) for number in range(LARGEST + 1)]
    vocabulary = [*SPECIAL.values(), *sorted(words), *numbers]
    ids = {word: i for i, word in enumerate(vocabulary)}
    core = Tokenizer(WordLevel(ids, unk_token=SPECIAL["unk_token"]))
    core.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=128,
        **AUTO_MAPS.get(model, {}),
        **SPECIAL,
    )


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """An untrained model of about a quarter of a million parameters in two layers."""
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = recipe.config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        **ids,
    )
    model = recipe.model(config)
    model.generation_config = GenerationConfig(**ids)
    return model


def examples(recipe: Recipe, held_out: set[str]) -> Iterator[tuple[str, str]]:
    """Endless (question, solution): fresh questions of both tasks, solutions that may slip."""
    rng = random.Random(f"{SEED} pretraining")
    while True:
        name = rng.choice(list(TASKS))
        problem = TASKS[name].draw(rng)
        low, high = recipe.slips[name]
        log_odds = low * (1 - problem.hardness) + high * problem.hardness
        slips = rng.random() < 1 / (1 + math.exp(-log_odds))
        if problem.question not in held_out:
            yield problem.question, problem.slipped if slips else problem.right


def make_batch(
    rows: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast
) -> dict[str, torch.Tensor]:
    """Token ids, padded on the right, and labels, which cover the solution and its end."""
    ids, labels = [], []
    for question, solution in rows:
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompt_ids = tokenizer.encode(prompt)
        solution_ids = [*tokenizer.encode(solution), tokenizer.eos_token_id]
        ids.append(torch.tensor(prompt_ids + solution_ids))
        labels.append(torch.tensor([IGNORED] * len(prompt_ids) + solution_ids))
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(ids, batch_first=True, padding_value=tokenizer.pad_token_id),
        "labels": pad(labels, batch_first=True, padding_value=IGNORED),
    }


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    data: Iterator[tuple[str, str]],
    steps: int,
) -> None:
    """Supervised training with a short warm-up and a cosine to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), LR, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * i / steps))
    )
    started = time.monotonic()
    for step in range(1, steps + 1):
        # Nothing looks ahead, so right padding needs no attention mask.
        loss = model(**make_batch(list(itertools.islice(data, BATCH)), tokenizer)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0:
            seconds = time.monotonic() - started
            print(f"  step {step}/{steps}: loss {loss.item():.4f}, {seconds:.0f} s", flush=True)


def main() -> None:
    """Write `tasks/` and `models/` below `--out`, by default beside this file."""
    parser = argparse.ArgumentParser(description="Make the embedded tasks and models.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--steps", type=int, default=STEPS, help="pretraining steps a model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    disable_progress_bar()
    held_out = write_tasks(arguments.out)
    for name, recipe in RECIPES.items():
        tokenizer = make_tokenizer(name)
        torch.manual_seed(SEED)
        model = make_model(recipe, tokenizer)
        print(f"{name}: {model.num_parameters()} parameters", flush=True)
        pretrain(model, tokenizer, examples(recipe, held_out), arguments.steps)
        folder = arguments.out / "models" / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder, save_jinja_files=False)


if __name__ == "__main__":
    main()
