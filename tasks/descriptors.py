"""What the monitor watches of inputs: numbers and kinds, a row each. A release's reference holds the same ones."""

import polars as pl

from tasks.languages import languages
from tasks.problems import Problem
from tasks.runtime import Runtime
from tasks.vocabulary import unknown_id

INPUTS = "inputs"
ANSWERS = "answers"
CONFIDENCE = "confidence"
EMBEDDING = "embedding"


def describe(rows: pl.DataFrame, runtime: Runtime) -> pl.DataFrame:
    """`id`, the problem's own descriptors, the language, and how the model's tokenizer takes the text.

    The columns of text are the problem's; a problem without any has its own descriptors alone.
    """
    problem = runtime.problem
    described = problem.descriptors(rows)
    texts = [name for name in problem.texts if name in problem.inputs]
    if not texts:
        return described
    together = rows.select(pl.concat_str(texts, separator="\n", ignore_nulls=True)).to_series()
    tokens = pl.col("input_ids")
    unknown = unknown_id(runtime.tokenizer)
    # A long row may have become several.
    read = (
        runtime.encoded(rows)
        .group_by("id", maintain_order=True)
        .agg(
            num_tokens=tokens.list.len().sum(),
            num_unknown=pl.lit(0) if unknown is None else tokens.list.count_matches(unknown).sum(),
            truncated=pl.col("truncated").any(),
        )
    )
    num_words = together.str.count_matches(r"\w+")
    return described.with_columns(
        language=languages(together),
        tokens_per_word=_share(read["num_tokens"], num_words),
        share_unknown_tokens=_share(read["num_unknown"], read["num_tokens"]),
        truncated=read["truncated"],
    )


def families(reference: pl.DataFrame, problem: Problem) -> dict[str, str]:
    """What each column of a reference is about: the inputs, the answers, how sure they are, or the embedding."""
    own = set(problem.descriptors(problem.examples()).columns)
    known = {"language", "tokens_per_word", "share_unknown_tokens", "truncated"}
    found = {}
    for name in reference.columns:
        if name == "id":
            continue
        if name == "embedding":
            found[name] = EMBEDDING
        elif name in own or name in known:
            found[name] = INPUTS
        else:
            found[name] = CONFIDENCE if name == "probability" else ANSWERS
    return found


def _share(counts: pl.Series, of: pl.Series) -> pl.Series:
    return pl.select(pl.when(of > 0).then(counts / of).otherwise(0.0)).to_series()
