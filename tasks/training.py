"""What happens around training's steps: what is written down, what is kept, when it stops, how far it has come."""

import contextlib
import hashlib
import shutil
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tasks.adapters import merged
from tasks.errors import DataError
from tasks.params import Train
from tasks.progress import progress
from tasks.shards import atomic_folder, read_json, write_json

# Written into a checkpoint last, so that a checkpoint without it is one that a kill cut short.
_WHOLE = "whole.json"

# In so many places, evenly over the steps, the report says what rows were seen so far.
_MARKS = 50


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end. Those that were not are removed."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / _WHOLE).exists():
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


class Journal(TrainerCallback):
    """Writes down every step, keeps the best epoch's weights, stops early; all of it survives a kill.

    Its state goes into each checkpoint, and comes back from the one that training goes on from. A running SHA-256 over
    the ids of every batch that was learned from shows that two runs saw the same rows in the same order, or by which
    step they did not.
    """

    def __init__(self, folder: Path, live: Path, params: Train, threads: int) -> None:
        self.best_folder = folder / "best"
        self._folder = folder
        self._live_folder = live
        self._params = params
        self._live: Any = None
        # Batches are fetched ahead of being learned from; these wait.
        self._fetched: deque[str] = deque()
        self._batches: list[tuple[float, int]] = []
        self._marked = 0.0
        self._seconds = 0.0
        self._tokens = 0
        self._state: dict[str, Any] = {
            "rows_seen": "",
            "rows_seen_by_step": [],
            "steps": [],
            "evaluations": [],
            "best": None,
            "bad": 0,
            "ended": False,
        }

    def saw(self, ids: pl.Series) -> None:
        """A batch with rows of these ids was fetched."""
        self._fetched.append("\n".join(ids))

    def learned(self, loss: float, num_tokens: int) -> None:
        """The earliest fetched batch was learned from."""
        chained = self._state["rows_seen"] + "\n" + self._fetched.popleft()
        self._state["rows_seen"] = hashlib.sha256(chained.encode()).hexdigest()
        self._batches.append((loss, num_tokens))

    def summary(self) -> dict[str, Any]:
        """What a report holds: deterministic."""
        steps, best = self._state["steps"], self._state["best"]
        return {
            "best_epoch": best["epoch"],
            "evaluations": self._state["evaluations"],
            "rows_seen_by_step": self._state["rows_seen_by_step"],
            "rows_seen_sha256": self._state["rows_seen"],
            "steps": len(steps),
            "tokens": sum(step["tokens"] for step in steps),
            "validation_loss": best["loss"],
        }

    def curve(self) -> list[dict[str, Any]]:
        """The loss of each step and of each evaluation, as DVC plots read them."""
        learned = [{"split": "train", "step": entry["step"], "loss": entry["loss"]} for entry in self._state["steps"]]
        held_out = [
            {"split": "validation", "step": entry["step"], "loss": entry["loss"]}
            for entry in self._state["evaluations"]
        ]
        return learned + held_out

    def restore(self, checkpoint: Path) -> bool:
        """Take over the state of a whole checkpoint; say whether training had ended there."""
        self._state = read_json(checkpoint / _WHOLE)
        return bool(self._state["ended"])

    def close(self) -> None:
        """End DVCLive's log."""
        if self._live is not None:
            self._live.log_metric("train/mean_tokens_per_second", round(self.tokens_per_second), plot=False)
            self._live.end()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.global_step:
            shutil.rmtree(self._live_folder, ignore_errors=True)
        self._live = _open_live(self._live_folder, resume=bool(state.global_step))
        self._marked = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        now = time.monotonic()
        num_tokens = sum(tokens for _, tokens in self._batches)
        step = {
            "step": state.global_step,
            "loss": round(sum(loss for loss, _ in self._batches), 6),
            "learning_rate": others["optimizer"].param_groups[0]["lr"],
            "tokens": num_tokens,
        }
        self._state["steps"].append(step)
        if state.global_step % -(-state.max_steps // _MARKS) == 0:
            epoch = -(-state.global_step // self._steps_of_epoch(args, state))
            seen = f"epoch {epoch}, step {state.global_step}: {self._state['rows_seen'][:16]}"
            self._state["rows_seen_by_step"].append(seen)
        self._live.log_metric("train/loss", step["loss"])
        self._live.log_metric("train/learning_rate", step["learning_rate"])
        self._live.log_metric("train/tokens_per_second", round(num_tokens / max(now - self._marked, 1e-9)))
        self._live.step = state.global_step
        self._seconds += now - self._marked
        self._tokens += num_tokens
        self._batches.clear()
        if state.global_step % self._steps_of_epoch(args, state) == 0:
            # transformers would save here, before the epoch is evaluated, and never come back to that evaluation.
            control.should_save = False
        self._marked = time.monotonic()

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_save = True  # which comes after the evaluation

    @staticmethod
    def _steps_of_epoch(args: TrainingArguments, state: TrainerState) -> int:
        return state.max_steps // int(args.num_train_epochs)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: Any,
    ) -> None:
        evaluation = {
            "epoch": round(state.epoch or 0),
            "step": state.global_step,
            "loss": round(others["metrics"]["eval_loss"], 6),
        }
        self._state["evaluations"].append(evaluation)
        self._live.log_metric("validation/loss", evaluation["loss"])
        best, early = self._state["best"], self._params.early_stopping
        least = early.min_improvement if early else 0.0
        if best is None or evaluation["loss"] < best["loss"] - least:
            self._state["best"], self._state["bad"] = evaluation, 0
            with atomic_folder(self.best_folder) as folder:
                others["model"].save_pretrained(
                    folder, state_dict=merged(others["model"]) if self._params.lora else None
                )
        else:
            self._state["bad"] += 1
            if early and self._state["bad"] >= early.patience:
                control.should_training_stop = True
        self._state["ended"] = control.should_training_stop or state.global_step >= state.max_steps
        self._marked = time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        write_json(self._folder / f"checkpoint-{state.global_step}" / _WHOLE, self._state)
        self._marked = time.monotonic()

    @property
    def tokens_per_second(self) -> float:
        """Tokens that this process learned from, per second of its steps: evaluations and checkpoints apart."""
        return self._tokens / max(self._seconds, 1e-9)


def _open_live(folder: Path, *, resume: bool) -> Any:
    """DVCLive's log: files alone, no experiment and no pipeline of its own."""
    from dvclive.live import Live
    from scmrepo.exceptions import SCMError

    try:
        return Live(str(folder), resume=resume, report=None, save_dvc_exp=False, dvcyaml=None)
    except SCMError as error:
        raise DataError(
            f"DVCLive, which logs the training, cannot work with Git here ({error}). Where there is no commit yet, "
            "make one: git add --all && git commit -m 'Begin'. Then run it again."
        ) from None


class Progress(TrainerCallback):
    """Steps and the time that is left."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._advance: Callable[[int], None] = lambda _: None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._advance = self._stack.enter_context(
            progress("train", total=state.max_steps - state.global_step, unit="steps")
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._advance(1)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._stack.close()
