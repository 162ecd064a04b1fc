"""Writing: tokens a second of what is released, beside transformers' `model.generate` with the same weights.

    python -m tests.benchmarks.generate [--model NAME]

Without a name the recipe's decoder is built with weights from a seed: its sizes decide how long a token takes, and
what the weights are would only decide when a text ends, which none does here. With a name it is models/NAME/checkpoint
of a model of text_generation, and the prompts are the beginnings of its test texts. Everybody gets the same prompts and
writes the same number of tokens, the likeliest each time, with a cache and as many threads. They take turns, round by
round, so that what else the machine does meets all of them; medians are shown.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch
import transformers
from tokenizers import Tokenizer

from tasks import problems
from tasks.export import quantize, to_onnx
from tasks.params import Scratch, load_model, read_yaml
from tasks.paths import Paths
from tasks.pretrained import quiet
from tasks.runtime import open_session
from tasks.shards import read_json, read_rows
from tasks.writing import Sampling, write

PROBLEM = problems.load("text_generation")
RECIPE = Path("recipes/text_generation.yaml")
THREADS = 2

Tokens = list[list[int]]


def main() -> None:
    """Print a line for each number of prompts side by side, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="a model of text_generation, whose line has been run")
    parser.add_argument("--new", type=int, default=64, help="tokens that each prompt is followed by")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--side-by-side", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(THREADS)
    quiet()
    model, prompts, last = (
        of_model(asked.model, asked.prompt) if asked.model else of_recipe(asked.prompt, max(asked.side_by_side))
    )
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M weights, {asked.new} tokens after {asked.prompt}")
    with tempfile.TemporaryDirectory() as folder:
        writers = {"transformers": by_transformers(model, last), **by_onnx(model, last, Path(folder))}
        for num in asked.side_by_side:
            rates, same = race(writers, prompts[:num], asked.new, asked.rounds)
            print(f"{num} side by side, {asked.rounds} rounds:")
            for name, rate in rates.items():
                ratio = rate / rates["transformers"]
                print(
                    f"  {name:14} {rate:8.0f} tokens/s   {ratio:5.2f} times   {same[name]:4.0%} of the texts the same"
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


def by_transformers(model: transformers.PreTrainedModel, last: int) -> Writer:
    """`model.generate`, greedy, with its cache."""

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
        return found[:, ids.shape[1] :].tolist()

    return writer


def by_onnx(model: transformers.PreTrainedModel, last: int, folder: Path) -> dict[str, Writer]:
    """What export makes of the model, in full precision and compressed, and `tasks.writing`."""
    rows = pl.DataFrame(
        {"id": ["a", "b"], "input_ids": [[1, 2, 3, 4], [1, 2, 3]], "counted": [[0, 1, 1, 1], [0, 1, 1]]}
    )
    to_onnx(PROBLEM, model, rows, 0, folder / "fp32.onnx")
    quantize(folder / "fp32.onnx", folder / "int8.onnx")

    def writer_of(variant: str) -> Writer:
        session = open_session(folder / f"{variant}.onnx", THREADS)
        return lambda prompts, new: write(session, prompts, last, Sampling(max_new_tokens=new), never=[last])

    return {f"ONNX {variant}": writer_of(variant) for variant in ("fp32", "int8")}


def of_recipe(size: int, num: int) -> tuple[transformers.PreTrainedModel, Tokens, int]:
    """The recipe's decoder with weights and prompts from a seed, and its token for the end of a text."""
    recipe = read_yaml(RECIPE)["model"]
    vocabulary = recipe["tokenize"]["tokenizer"]["vocabulary"]
    torch.manual_seed(1)
    model = PROBLEM.build(Scratch(**recipe["base"]), vocabulary, {}, dropout=0.0, attention="sdpa").eval()
    prompts = np.random.default_rng(1).integers(5, vocabulary, size=(num, size)).tolist()
    return model, prompts, 3


def of_model(name: str, size: int) -> tuple[transformers.PreTrainedModel, Tokens, int]:
    """A model's checkpoint, the beginnings of its test texts, and its token for the end of a text."""
    from tasks.problems._text import ends

    paths = Paths(name)
    facts = read_json(paths.checkpoint / "signature.json")
    if (problem := load_model(name).problem) != PROBLEM.name:
        raise SystemExit(f"{name} is of {problem}, and only what goes on with a prompt is measured: {PROBLEM.name}.")
    model = PROBLEM.build(str(paths.checkpoint), facts["vocabulary"], {}, dropout=0.0, attention="sdpa").eval()
    tokenizer = Tokenizer.from_file(str(paths.checkpoint / "tokenizer" / "tokenizer.json"))
    first, last = ends(tokenizer)
    texts = read_rows(paths.clean).filter(pl.col("split") == "test")["text"].to_list()
    ids = [[first, *tokenizer.encode(text, add_special_tokens=False).ids][:size] for text in texts]
    return model, [prompt for prompt in ids if len(prompt) == size], last


if __name__ == "__main__":
    main()
