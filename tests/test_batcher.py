"""Rows of many requests, computed together: tasks/serving/batcher.py."""

import threading
from collections.abc import Iterator
from concurrent.futures import wait

import pytest

from tasks.serving.batcher import Batcher, Busy, Retired
from tests.waiting import wait_until


class Model:
    """Answers with each text's length; keeps what it was asked, and waits where it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.is_asked = threading.Event()

    def answer(self, texts: list[str]) -> list[int]:
        self.batches.append(texts)
        self.is_asked.set()
        assert self.may_go.wait(10)
        if "broken" in texts:
            raise RuntimeError("no answer to this")
        return [len(text) for text in texts]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def batcher(model: Model) -> Iterator[Batcher[str, int]]:
    batcher = make(model)
    yield batcher
    model.may_go.set()
    batcher.close()


def make(model: Model, lanes: int = 1, **settings: float) -> Batcher[str, int]:
    return Batcher(
        [model.answer] * lanes,
        len,
        batch_rows=int(settings.get("batch_rows", 4)),
        wait_seconds=settings.get("wait_seconds", 0.0),
        queue_rows=int(settings.get("queue_rows", 8)),
        queue_seconds=settings.get("queue_seconds", 60.0),
        name="test",
    )


def hold(model: Model, batcher: Batcher[str, int]) -> None:
    """Let the model hang on a first request, so that what comes then has to wait."""
    model.may_go.clear()
    model.is_asked.clear()
    batcher.submit(["first"])
    assert model.is_asked.wait(10)


def test_a_request_gets_its_answers_in_its_own_order(batcher: Batcher[str, int]) -> None:
    texts = ["aaaa", "a", "aaa", "aaaaaaa", "aa", "aaaaaa", "aaaaa"]
    assert batcher.submit(texts).result(10) == [len(text) for text in texts]


def test_requests_that_wait_are_computed_together_and_each_gets_its_own(
    model: Model, batcher: Batcher[str, int]
) -> None:
    hold(model, batcher)
    futures = [batcher.submit([text]) for text in ("bb", "cccc", "d")]
    model.may_go.set()
    assert [future.result(10) for future in futures] == [[2], [4], [1]]
    assert model.batches[1:] == [["bb", "cccc", "d"]]


def test_a_lane_takes_its_share_of_what_waits_and_no_more_than_a_window(model: Model) -> None:
    batcher = make(model, queue_rows=1000)
    hold(model, batcher)
    futures = [batcher.submit(["text"]) for _ in range(100)]
    model.may_go.set()
    wait(futures, 10)
    assert [len(batch) for batch in model.batches[1:]] == [64, 36]  # sixteen batches of four rows
    batcher.close()


def test_lanes_share_a_request_and_the_rows_of_like_length_stay_together(model: Model) -> None:
    batcher = make(model, lanes=2, batch_rows=8)
    model.may_go.clear()
    future = batcher.submit(["x" * length for length in (9, 1, 8, 2, 7, 3, 6, 4)])
    wait_until(lambda: len(model.batches) >= 2)
    assert sorted(sorted(map(len, batch)) for batch in model.batches) == [[1, 2, 3, 4], [6, 7, 8, 9]]
    model.may_go.set()
    assert future.result(10) == [9, 1, 8, 2, 7, 3, 6, 4]
    batcher.close()


def test_the_first_of_a_batch_waits_for_others_no_longer_than_it_should(model: Model) -> None:
    batcher = make(model, wait_seconds=0.3)
    futures = [batcher.submit([text]) for text in ("a", "b")]
    wait(futures, 10)
    assert model.batches == [["a", "b"]]
    assert batcher.submit(["c"]).result(5) == [1]
    batcher.close()


def test_a_lane_whose_rows_another_one_took_while_it_waited_for_more_goes_on(model: Model) -> None:
    batcher = make(model, lanes=2, wait_seconds=0.2)
    # The second of a pair wakes the other lane; both wait for more, and one of them takes what there is.
    for _ in range(3):
        wait([batcher.submit([text]) for text in ("a", "b")], 10)
    assert model.batches == [["a", "b"]] * 3
    hold(model, batcher)
    waiting = batcher.submit(["c"])
    wait_until(lambda: len(model.batches) == 5, seconds=5)  # by the lane that the first does not occupy
    model.may_go.set()
    assert waiting.result(10) == [1]
    batcher.close()


def test_whoever_comes_when_the_queue_is_full_is_told_when_to_come_again(
    model: Model, batcher: Batcher[str, int]
) -> None:
    hold(model, batcher)
    taken = [batcher.submit(["a", "b", "c", "d"]) for _ in range(2)]
    with pytest.raises(Busy) as busy:
        batcher.submit(["e"])
    assert busy.value.retry_after >= 1
    model.may_go.set()
    assert all(len(future.result(10)) == 4 for future in taken)
    assert len(batcher.submit(["e"]).result(10)) == 1


def test_the_queue_is_bounded_by_the_time_that_it_will_take(model: Model) -> None:
    batcher = make(model, queue_seconds=1e-9, queue_rows=1000)
    batcher.submit(["to learn what a row costs"]).result(10)
    hold(model, batcher)
    batcher.submit(["one may always wait"])
    with pytest.raises(Busy):
        batcher.submit(["two"])
    model.may_go.set()
    batcher.close()


def test_a_list_longer_than_the_queue_is_taken_where_nothing_waits(batcher: Batcher[str, int]) -> None:
    assert len(batcher.submit(["text"] * 50).result(10)) == 50


def test_a_failure_reaches_those_who_asked_and_nobody_else(batcher: Batcher[str, int]) -> None:
    with pytest.raises(RuntimeError, match="no answer to this"):
        batcher.submit(["broken"]).result(10)
    assert len(batcher.submit(["whole"]).result(10)) == 1


def test_what_waits_is_answered_before_the_end_and_nothing_is_taken_after(model: Model) -> None:
    batcher = make(model)
    hold(model, batcher)
    waiting = batcher.submit(["a"])
    closing = threading.Thread(target=batcher.close)
    closing.start()
    model.may_go.set()
    closing.join(10)
    assert waiting.result(0) == [1]
    with pytest.raises(Retired):
        batcher.submit(["late"])


def test_a_caller_that_has_gone_costs_nothing(model: Model, batcher: Batcher[str, int]) -> None:
    hold(model, batcher)
    gone, stays = batcher.submit(["gone"]), batcher.submit(["stays"])
    assert gone.cancel()
    model.may_go.set()
    stays.result(10)
    assert model.batches[1:] == [["stays"]]
