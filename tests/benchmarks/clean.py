"""The stage clean on documents with planted near-duplicates: its speed, what it finds, and its memory.

    python -m tests.benchmarks.clean [--documents data/samples/passages.parquet] [--times 10]

Every second document gets three copies with noise: letters in another case, punctuation lost, and of every hundred
words one or two dropped or swapped. The same again with `--times` as many rows, for the memory: there, documents are
made by shuffling the words of others. Each run has a process of its own.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROWS_PER_SHARD = 50_000
_SEED = 20261101


def main() -> None:
    """Print a table of both runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--documents", type=Path, default=Path("data/samples/passages.parquet"), help="Parquet with `text`"
    )
    parser.add_argument("--times", type=int, default=10, help="how many times the rows the second run has")
    parser.add_argument("--part", choices=["make", "measure"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part == "make":
        _make(chosen.documents, chosen.times, chosen.folder)
    elif chosen.part == "measure":
        print(json.dumps(_measure(chosen.folder)))
    else:
        _compare(chosen.documents, chosen.times)


def _compare(documents: Path, times: int) -> None:
    # This process imports nothing large: what it holds when it starts another would count as that one's memory.
    found = []
    for number in (1, times):
        with tempfile.TemporaryDirectory() as folder:
            arguments = ["--documents", str(documents), "--times", str(number), "--folder", folder]
            _run("make", arguments)
            found.append(json.loads(_run("measure", arguments)))
    rows = (
        ("documents", "{documents:,}"),
        ("of them planted copies", "{copies:,}"),
        ("text, MB", "{megabytes:.1f}"),
        ("seconds", "{seconds:.2f}"),
        ("MB/s", "{rate:.2f}"),
        ("peak memory, MB", "{peak:.0f}"),
        ("planted copies found", "{recall:.3%}"),
        ("least Jaccard of a planted copy", "{least_similar:.3f}"),
        ("originals dropped as near another", "{originals_dropped:,}"),
        ("of them below the threshold in truth", "{false_drops:,}"),
    )
    for label, form in rows:
        print(f"{label:38}" + "".join(f"{form.format(**figures):>14}" for figures in found))
    print(f"{'memory, times':38}{found[1]['peak'] / found[0]['peak']:28.2f}")


def _run(part: str, arguments: list[str]) -> str:
    command = [sys.executable, "-m", "tests.benchmarks.clean", "--part", part, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _make(documents: Path, times: int, folder: Path) -> None:
    """The valid rows as the stage before would leave them."""
    import polars as pl

    from tasks.shards import ShardWriter

    valid = folder / "valid"
    valid.mkdir()
    texts = pl.read_parquet(documents)["text"].to_list()
    writer = ShardWriter(
        valid, _ROWS_PER_SHARD, {"id": pl.String(), "text": pl.String(), "label": pl.String()}, "p00000"
    )
    for variant in range(times):
        ids, made = zip(*_documents(texts, variant), strict=True)
        writer.write(pl.DataFrame({"id": ids, "text": made}).with_columns(label=pl.lit("one")))
    writer.finish()


def _documents(texts: list[str], variant: int) -> Iterator[tuple[str, str]]:
    for number, text in enumerate(texts):
        words = text.split()
        chance = random.Random(f"{_SEED} {variant} {number}")
        if variant:
            chance.shuffle(words)
        key = f"v{variant:02d}-{number:06d}"
        yield key, " ".join(words)
        for copy in range(3 if number % 2 else 0):
            yield f"{key}-copy-{copy}", " ".join(_noisy(words, chance))


def _noisy(words: list[str], chance: random.Random) -> list[str]:
    noisy = [word.swapcase() if chance.random() < 0.05 else word for word in words]
    noisy = [word.rstrip(",.;:") or word if chance.random() < 0.2 else word for word in noisy]
    for _ in range(int(0.015 * len(words))):
        place = chance.randrange(len(noisy) - 1)
        if chance.random() < 0.5:
            del noisy[place]
        else:
            noisy[place : place + 2] = reversed(noisy[place : place + 2])
    return noisy


def _measure(folder: Path) -> dict[str, Any]:
    from tasks import problems
    from tasks.clean import clean
    from tasks.params import load_model

    params = load_model("reviews").clean.model_copy(update={"min_rows": 1})  # so that few documents will do
    problem = problems.load("text_classification")
    started = time.perf_counter()
    clean(folder / "valid", folder / "kept", folder / "clean.json", params=params, problem=problem)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # before the judgement below, which reads it all
    assert params.near_duplicates is not None
    return {"seconds": seconds, "peak": peak, **_judge(folder, seconds, params.near_duplicates)}


def _judge(folder: Path, seconds: float, near: Any) -> dict[str, Any]:
    import polars as pl

    from tasks.shards import read_rows

    rows = read_rows(folder / "valid")
    megabytes = rows["text"].str.len_bytes().sum() / 1e6
    texts = dict(zip(rows["id"], rows["text"], strict=True))
    dropped = pl.read_parquet(folder / "kept" / "dropped.parquet")
    copies = [key for key in texts if "-copy-" in key]
    gone = set(dropped["id"])
    reasons = {key: reason for key, reason in dropped.select("id", "reason").iter_rows() if "-copy-" not in key}
    truth = [
        _jaccard(texts[key], texts[reason.partition(":")[2]], near.shingle_words)
        for key, reason in reasons.items()
        if reason.startswith("near_duplicate_of:")
    ]
    similar = [_jaccard(texts[key], texts[key.partition("-copy-")[0]], near.shingle_words) for key in copies]
    return {
        "documents": len(rows),
        "copies": len(copies),
        "megabytes": megabytes,
        "rate": megabytes / seconds,
        "recall": sum(key in gone for key in copies) / len(copies),
        "least_similar": min(similar),
        "originals_dropped": len(reasons),
        "false_drops": sum(share < near.threshold for share in truth),
    }


def _jaccard(one: str, other: str, shingle_words: int) -> float:
    """The share of word shingles that two texts have in common, counted."""
    import re

    def shingles(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[at : at + shingle_words]) for at in range(max(len(words) - shingle_words + 1, 1))}

    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second)


if __name__ == "__main__":
    main()
