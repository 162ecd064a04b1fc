"""Which span of a passage answers: within a window in the exported graph, between windows by what validation has shown.

Arrays are named by shape: B windows of a batch, T tokens; W windows of all rows, N rows, M windows of the row that has
the most.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.problems import Arrays, _text

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

# Answers of SQuAD and QuAC are hardly ever longer. The ends of a span are judged apart from each other, so that with
# more room the unlikely long spans, of which there are most, would outweigh the likely ones.
_MOST_ANSWER_TOKENS = 48

# What a span that begins later in its passage may lose against an earlier one, for each factor e of its distance, which
# is counted in so many characters.
_LATE = np.arange(0, 2.01, 0.25)
_LATE_CHARS = 100


def expected_overlap(model: "PreTrainedModel") -> "nn.Module":
    """From a batch of windows the best span of each, as tokens, its score, the score of having none, the embedding."""
    import inspect

    import torch

    reads_types = "token_type_ids" in inspect.signature(model.forward).parameters

    class ExpectedOverlap(torch.nn.Module):
        """The span that can expect the most F1, where P(first, last) is the softmax of their two logits' sum.

        A likely span whose ends are doubtful loses to a longer one that has most of the likely words: minimum Bayes
        risk (Kumar and Byrne 2004) instead of the most probable. F1 is counted by tokens, and the expectation of the
        ratio taken as the ratio of the expectations. The score is the log of that F1 times the softmax's denominator,
        which makes windows of one passage comparable with each other and with having no answer.
        """

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, input_ids: "Tensor", attention_mask: "Tensor", token_type_ids: "Tensor", context_mask: "Tensor"
        ) -> tuple["Tensor", ...]:
            types = {"token_type_ids": token_type_ids} if reads_types else {}
            out = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True, **types)
            is_mine_BT = context_mask > 0
            place_T = torch.arange(input_ids.shape[1], device=input_ids.device)
            length_TT = place_T[None, :] - place_T[:, None] + 1
            can_be_BTT = (
                ((length_TT > 0) & (length_TT <= _MOST_ANSWER_TOKENS)) & is_mine_BT[:, :, None] & is_mine_BT[:, None, :]
            )
            logit_BTT = torch.where(can_be_BTT, out.start_logits[:, :, None] + out.end_logits[:, None, :], -1e9)
            highest_B = logit_BTT.amax(dim=(1, 2))
            weight_BTT = torch.where(can_be_BTT, torch.exp(logit_BTT - highest_B[:, None, None]), 0.0)
            total_B = weight_BTT.sum(dim=(1, 2)).clamp_min(1e-30)
            p_BTT = weight_BTT / total_B[:, None, None]
            # What begins at a token and ends there or later; then, for each token, that a span covers it.
            later_BTT = p_BTT.sum(dim=2, keepdim=True) - p_BTT.cumsum(dim=2) + p_BTT
            covered_BT = torch.where(length_TT > 0, later_BTT, 0.0).sum(dim=1)
            up_to_BT = covered_BT.cumsum(dim=1)
            shared_BTT = up_to_BT[:, None, :] - (up_to_BT - covered_BT)[:, :, None]
            both_BTT = length_TT + up_to_BT[:, -1, None, None]
            f1_BTT = torch.where(can_be_BTT, 2 * shared_BTT / both_BTT.clamp_min(1), 0.0)
            ending_BT, ends_BT = f1_BTT.max(dim=2)
            f1_B, starts_B = ending_BT.max(dim=1)
            return (
                starts_B,
                ends_BT.gather(1, starts_B[:, None])[:, 0],
                highest_B + torch.log(total_B) + torch.log(f1_B.clamp_min(1e-30)),
                out.start_logits[:, 0] + out.end_logits[:, 0],
                _text.pooled(out.hidden_states[-1], attention_mask),
            )

    return ExpectedOverlap()


def by_row(outputs: Arrays, encoded: pl.DataFrame) -> dict[str, NDArray[Any]]:
    """The windows side by side: of each its number in `window`, the span's `start` and `end` in characters, its `score`
    over having no answer. A row with fewer windows than others repeats its last one.
    """
    firsts_N = np.flatnonzero(_text.begins_row(encoded))
    if not len(firsts_N):
        return {
            "window": np.zeros((0, 1), dtype=np.int64),
            "start": np.zeros((0, 1), dtype=np.int64),
            "end": np.zeros((0, 1), dtype=np.int64),
            "score": np.zeros((0, 1), dtype=np.float32),
        }
    sizes_N = np.diff(np.append(firsts_N, len(encoded)))
    window_NM = firsts_N[:, None] + np.minimum(np.arange(sizes_N.max()), sizes_N[:, None] - 1)
    chars = encoded.select(
        start=pl.col("starts").list.get(pl.lit(pl.Series(outputs["start"]))),
        end=pl.col("ends").list.get(pl.lit(pl.Series(outputs["end"]))),
    )
    nulls_N = np.minimum.reduceat(outputs["null_score"], firsts_N)
    return {
        "window": window_NM,
        "start": chars["start"].to_numpy().astype(np.int64)[window_NM],
        "end": chars["end"].to_numpy().astype(np.int64)[window_NM],
        "score": outputs["score"][window_NM] - nulls_N[:, None],
    }


def choose(start_NM: NDArray[Any], score_NM: NDArray[Any], late: float) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """For each row the place of its best span (the first of equals), and by how much it beats having no answer."""
    worth_NM = score_NM.astype(np.float64) - late * np.log1p(start_NM / _LATE_CHARS)
    best_N = worth_NM.argmax(axis=1)
    return best_N, worth_NM[np.arange(len(best_N)), best_N]


def fit(outputs: Arrays, encoded: pl.DataFrame) -> dict[str, float]:
    """What decides between windows and whether to answer, fitted to the F1 of the encoded rows: `late`, `threshold`.

    `scale` makes of what lies beyond the threshold a probability that there is an answer.
    """
    rows = by_row(outputs, encoded)
    targets_W2 = encoded.select("start", "end").to_numpy()
    answerable_N = (targets_W2[:, 1] > 0)[rows["window"]].any(axis=1)
    f1_W = _f1_by_tokens(np.stack([outputs["start"], outputs["end"]], axis=1), targets_W2)

    def chosen(late: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        best_N, margin_N = choose(rows["start"], rows["score"], late)
        return f1_W[rows["window"][np.arange(len(best_N)), best_N]], margin_N

    # The first of equals, which is the smallest.
    late = max((float(late) for late in _LATE), key=lambda late: float(chosen(late)[0].sum()))
    f1_N, margin_N = chosen(late)
    threshold = _threshold(margin_N, np.where(answerable_N, f1_N, -1.0))
    return {"late": late, "scale": _fit_scale(margin_N - threshold, answerable_N), "threshold": threshold}


def _f1_by_tokens(found_W2: NDArray[Any], right_W2: NDArray[Any]) -> NDArray[np.float64]:
    """F1 by tokens of spans from a first to a last one; 0 where there is no right one, whose first and last are 0."""
    shared_W = np.minimum(found_W2[:, 1], right_W2[:, 1]) - np.maximum(found_W2[:, 0], right_W2[:, 0]) + 1
    sizes_W = (found_W2[:, 1] - found_W2[:, 0] + 1) + (right_W2[:, 1] - right_W2[:, 0] + 1)
    return np.asarray(2 * np.maximum(shared_W, 0) / sizes_W, dtype=np.float64)


def _threshold(margin_N: NDArray[np.float64], gain_N: NDArray[np.float64]) -> float:
    """The margin from which on answering can expect to gain: where the line of least squares through the gains is 0.

    Of a few hundred rows the cut with the largest sum of gains is mostly chance. Where the line does not rise, or is 0
    beyond all margins, either all rows are answered or none.
    """
    deviation_N = margin_N - margin_N.mean()
    spread, slope = float(deviation_N @ deviation_N), float(deviation_N @ gain_N)
    lowest, highest = float(margin_N.min()) - 1, float(margin_N.max()) + 1
    if slope <= 0:
        return round(lowest if gain_N.mean() > 0 else highest, 6)
    return round(float(np.clip(margin_N.mean() - gain_N.mean() * spread / slope, lowest, highest)), 6)


def _fit_scale(beyond_N: NDArray[np.float64], answerable_N: NDArray[np.bool_]) -> float:
    """The s for which sigmoid(s · margin) has the least log loss (Platt 1999, without the shift), 0.01 to 100."""
    from scipy.optimize import minimize_scalar

    signed_N = np.where(answerable_N, beyond_N, -beyond_N)

    def log_loss(log_scale: float) -> float:
        return float(np.logaddexp(0.0, -np.exp(log_scale) * signed_N).mean())

    found = minimize_scalar(log_loss, bounds=(np.log(0.01), np.log(100)), method="bounded", options={"xatol": 1e-7})
    return round(float(np.exp(found.x)), 6)
