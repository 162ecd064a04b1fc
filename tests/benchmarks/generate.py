"""Writing: tokens a second of what is released, beside transformers' `model.generate` with the same weights.

    python -m tests.benchmarks.generate [--recipe translation | --model NAME]

A recipe's model is built with weights from a seed: its sizes decide how long a token takes, and what the weights are
would only decide when a text ends, which none does here. With a name it is models/NAME/checkpoint, and the prompts are
the beginnings of its test texts. Everybody gets the same prompts and writes the same number of tokens, the likeliest
each time, with a cache and as many threads. They take turns, round by
round, so that what else the machine does meets all of them; medians are shown.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
import transformers
from tokenizers import Tokenizer

from tasks import problems
from tasks.compression import COMPRESSIONS
from tasks.export import to_onnx
from tasks.params import Scratch, load_model, read_yaml
from tasks.paths import Paths
from tasks.pretrained import quiet
from tasks.problems import Problem
from tasks.problems._encoder_decoder import START
from tasks.problems._text import ends
from tasks.runtime import open_session
from tasks.shards import read_json, read_rows
from tasks.writing import Sampling, write

RECIPES = ("text_generation", "translation")
THREADS = 2

Tokens = list[list[int]]


@dataclass(frozen=True)
class Subject:
    """A model that writes, what it is asked, and its token for the end of a text."""

    problem: Problem
    model: transformers.PreTrainedModel
    prompts: Tokens
    last: int


def main() -> None:
    """Print a line for each number of prompts side by side, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, default=RECIPES[0])
    parser.add_argument("--model", default=None, help="a model that writes, whose line has been run")
    parser.add_argument("--new", type=int, default=64, help="tokens that each prompt is followed by")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--side-by-side", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(THREADS)
    quiet()
    subject = (
        of_model(asked.model, asked.prompt)
        if asked.model
        else of_recipe(asked.recipe, asked.prompt, max(asked.side_by_side))
    )
    weights = sum(weights.numel() for weights in subject.model.parameters())
    print(f"{subject.problem.name}: {weights / 1e6:.1f} M weights, {asked.new} tokens after {asked.prompt}")
    with tempfile.TemporaryDirectory() as folder:
        writers = {"transformers": by_transformers(subject), **by_onnx(subject, Path(folder))}
        for num in asked.side_by_side:
            rates, same = race(writers, subject.prompts[:num], asked.new, asked.rounds)
            print(f"{num} side by side, {asked.rounds} rounds:")
            for name, rate in rates.items():
                ratio = rate / rates["transformers"]
                print(
                    f"  {name:16} {rate:8.0f} tokens/s   {ratio:5.2f} times   {same[name]:4.0%} of the texts the same"
                )


Writer = Callable[[Tokens, int], Tokens]


def race(
    writers: dict[str, Writer], prompts: Tokens, new: int, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Tokens a second of each by name, the median over the rounds, and the share of texts as the first writes them."""
    seconds: dict[str, list[float]] = {name: [] for name in writers}
    for writer in writers.values():
        writer(prompts, new)  # whoever comes first finds nothing warm
    written = {}
    for _ in range(rounds):
        for name, writer in writers.items():
            started = time.perf_counter()
            written[name] = writer(prompts, new)
            seconds[name].append(time.perf_counter() - started)
    assert all(len(text) == new for texts in written.values() for text in texts)
    first = next(iter(written.values()))
    same = {
        name: float(np.mean([a == b for a, b in zip(texts, first, strict=True)])) for name, texts in written.items()
    }
    return {name: len(prompts) * new / statistics.median(taken) for name, taken in seconds.items()}, same


def by_transformers(subject: Subject) -> Writer:
    """`model.generate`, greedy, with its cache."""
    model, last = subject.model, subject.last

    def writer(prompts: Tokens, new: int) -> Tokens:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            found = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                use_cache=True,
                eos_token_id=last,
                pad_token_id=last,
            )
        # What a decoder alone has written stands behind its prompt, and a translation behind its start.
        return found[:, 1 if model.config.is_encoder_decoder else ids.shape[1] :].tolist()

    return writer


def by_onnx(subject: Subject, folder: Path) -> dict[str, Writer]:
    """What export makes of the model, in full precision and compressed, and `tasks.writing`."""
    rows = pl.DataFrame(
        {
            "id": ["a", "b"],
            "input_ids": [[1, 2, 3, 4], [1, 2, 3]],
            "counted": [[0, 1, 1, 1], [0, 1, 1]],
            "written": [[START, 5, 6, 7], [START, 5, 6]],
        }
    )
    subject.model.set_attn_implementation("eager")  # as export has it
    to_onnx(subject.problem, subject.model, rows, 0, folder / "fp32.onnx")
    subject.model.set_attn_implementation("sdpa")
    for name, compress in COMPRESSIONS.items():
        compress(folder / "fp32.onnx", folder / f"{name}.onnx")

    def writer_of(variant: str) -> Writer:
        session = open_session(folder / f"{variant}.onnx", THREADS)
        return lambda prompts, new: write(
            session, prompts, subject.last, Sampling(max_new_tokens=new), never=[subject.last]
        )

    return {f"ONNX {variant}": writer_of(variant) for variant in ("fp32", *COMPRESSIONS)}


def of_recipe(name: str, size: int, num: int) -> Subject:
    """The recipe's model with weights and prompts from a seed."""
    recipe = read_yaml(Path("recipes") / f"{name}.yaml")["model"]
    problem, vocabulary = problems.load(recipe["problem"]), recipe["tokenize"]["tokenizer"]["vocabulary"]
    torch.manual_seed(1)
    model = problem.build(Scratch(**recipe["base"]), vocabulary, {}, dropout=0.0, attention="sdpa").eval()
    prompts = np.random.default_rng(1).integers(5, vocabulary, size=(num, size)).tolist()
    return Subject(problem, model, prompts, 3)


def of_model(name: str, size: int) -> Subject:
    """A model's checkpoint, and the beginnings of its test texts."""
    paths = Paths(name)
    facts = read_json(paths.checkpoint / "signature.json")
    problem = problems.load(load_model(name).problem)
    if problem.writes is None:
        raise SystemExit(f"{name} is of {problem.name}, which writes nothing.")
    model = problem.build(str(paths.checkpoint), facts["vocabulary"], {}, dropout=0.0, attention="sdpa").eval()
    tokenizer = Tokenizer.from_file(str(paths.checkpoint / "tokenizer" / "tokenizer.json"))
    first, last = ends(tokenizer)
    texts = read_rows(paths.clean).filter(pl.col("split") == "test")["text"].to_list()
    before = [] if model.config.is_encoder_decoder else [first]
    ids = [[*before, *tokenizer.encode(text, add_special_tokens=False).ids][:size] for text in texts]
    return Subject(problem, model, [prompt for prompt in ids if len(prompt) == size], last)


if __name__ == "__main__":
    main()
