"""Labels without personal data. By itself, so that the sources, which read labels, do not depend on how it is found."""

from collections.abc import Sequence

import polars as pl

from tasks.labels import Kinds, Label
from tasks.redact import Kind, redact


def redacted(
    labels: Sequence[Label], targets: Kinds, kinds: Sequence[Kind], phone_regions: Sequence[str]
) -> list[Label]:
    """The labels with pseudonyms in their texts: people put into an answer what they would not put into a question."""
    texts = [name for name, kind in targets.items() if kind == pl.String()]
    if not texts or not kinds or not labels:
        return list(labels)
    rows = pl.DataFrame(
        [[one.label[name] for name in texts] for one in labels], dict.fromkeys(texts, pl.String), orient="row"
    )
    tidied, _ = redact(rows, texts, kinds, phone_regions)
    return [
        Label(one.prediction_id, {**one.label, **said})
        for one, said in zip(labels, tidied.iter_rows(named=True), strict=True)
    ]
