"""docs/attention.md, computed again: a page that teaches a formula has to be right to its last digit."""

import re

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs/attention.md").read_text(encoding="utf-8")
MATRIX = re.compile(r"^(\S.*) =\n((?:[\d. ]+\n)+)", re.MULTILINE)
MATRICES = {name: rows.splitlines() for name, rows in MATRIX.findall(PAGE)}


def matrix(name: str) -> Tensor:
    return torch.tensor([[float(number) for number in row.split()] for row in MATRICES[name]], dtype=torch.float64)


def computed() -> dict[str, Tensor]:
    q_TD, k_TD, v_TD = matrix("Q"), matrix("K"), matrix("V")
    scores_TT = q_TD @ k_TD.T
    scaled_TT = scores_TT / 2**0.5
    weights_TT = torch.softmax(scaled_TT, dim=1)
    causal_TT = torch.softmax(scaled_TT.masked_fill(torch.ones(2, 2).triu(1).bool(), float("-inf")), dim=1)
    cross_TS = torch.softmax(q_TD @ matrix("K source").T / 2**0.5, dim=1)
    return {
        "Q Kᵀ": scores_TT,
        "Q Kᵀ / √2": scaled_TT,
        "softmax(Q Kᵀ / √2)": weights_TT,
        "softmax(Q Kᵀ / √2) V": weights_TT @ v_TD,
        "causal weights": causal_TT,
        "causal result": causal_TT @ v_TD,
        "cross weights": cross_TS,
        "cross result": cross_TS @ matrix("V source"),
    }


GIVEN = {"Q", "K", "V", "K source", "V source"}


@pytest.mark.parametrize("name", sorted(set(MATRICES) - GIVEN))
def test_every_matrix_of_the_page_is_what_torch_computes(name):
    found = [[f"{number:.4f}" for number in row] for row in computed()[name].tolist()]
    assert [row.split() for row in MATRICES[name]] == found


def test_the_page_shows_every_step_and_the_inputs_that_were_given():
    assert set(MATRICES) == GIVEN | set(computed())
    assert matrix("Q").tolist() == matrix("V").tolist() == [[0.1, 0.2], [0.3, 0.4]]
    assert matrix("K").tolist() == [[0.1, 0.3], [0.2, 0.4]]


def test_torchs_own_attention_agrees_with_the_steps():
    q_TD, k_TD, v_TD = (matrix(name)[None] for name in "QKV")
    steps = computed()
    torch.testing.assert_close(scaled_dot_product_attention(q_TD, k_TD, v_TD)[0], steps["softmax(Q Kᵀ / √2) V"])
    torch.testing.assert_close(
        scaled_dot_product_attention(q_TD, k_TD, v_TD, is_causal=True)[0], steps["causal result"]
    )
    crossed = scaled_dot_product_attention(q_TD, matrix("K source")[None], matrix("V source")[None])
    torch.testing.assert_close(crossed[0], steps["cross result"])


def test_every_figure_in_a_sentence_is_one_of_those_computed():
    steps = computed()
    exponentials = steps["Q Kᵀ / √2"].exp()
    values = [number for name in MATRICES for row in matrix(name).tolist() for number in row]
    values += [number for found in steps.values() for number in found.flatten().tolist()]
    values += [*exponentials.flatten().tolist(), *exponentials.sum(dim=1).tolist(), 2**0.5]
    for written in re.findall(r"\d+\.\d+", MATRIX.sub("", PAGE)):
        digits = len(written.partition(".")[2])
        assert any(f"{value:.{digits}f}" == written for value in values), written
    shares = [int(share) for share in re.findall(r"(\d+) %", PAGE)]
    assert shares == [round(100 * share) for share in steps["softmax(Q Kᵀ / √2)"][0].tolist()]
