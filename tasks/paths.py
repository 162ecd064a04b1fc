"""Where things stand. One table for the stages, the commands and the tests; dvc.yaml says the same to DVC."""

from dataclasses import dataclass
from pathlib import Path

STAGES = ("collect", "validate", "clean", "tokenize", "train", "export", "evaluate", "deploy")

# Which files each stage's result depends on: for all models, and so no model's name.
CODE = Path("data/code")


@dataclass(frozen=True)
class Paths:
    """The places of one model, below the repository's root."""

    model: str
    root: Path = Path()

    @property
    def source_pin(self) -> Path:
        """What `mill pull` writes: the state of a source that DVC cannot hash by itself."""
        return self.root / "data" / self.model / "source.json"

    @property
    def feedback_pin(self) -> Path:
        """What `mill pull` writes of labels that came back; each partition says how many of the source's are before."""
        return self.root / "data" / self.model / "feedback.json"

    @property
    def admissions(self) -> Path:
        """Mended rows out of quarantine, in Git, written by `mill admit`."""
        return self.root / "data" / self.model / "admitted.jsonl"

    @property
    def forgotten(self) -> Path:
        """Which rows must not be learned from, in Git, written by `mill forget`."""
        return self.root / "data" / self.model / "forgotten.jsonl"

    @property
    def collected(self) -> Path:
        return self.root / "data" / self.model / "collect"

    @property
    def valid(self) -> Path:
        return self.root / "data" / self.model / "validate" / "valid"

    @property
    def quarantine(self) -> Path:
        return self.root / "data" / self.model / "validate" / "quarantine"

    @property
    def clean(self) -> Path:
        return self.root / "data" / self.model / "clean"

    @property
    def tokens(self) -> Path:
        return self.root / "data" / self.model / "tokenize"

    @property
    def checkpoint(self) -> Path:
        return self.root / "models" / self.model / "checkpoint"

    @property
    def candidate(self) -> Path:
        return self.root / "models" / self.model / "candidate"

    @property
    def scores(self) -> Path:
        """Per-row scores on the test split, which the paired tests of the gate read."""
        return self.root / "data" / self.model / "evaluate"

    @property
    def release(self) -> Path:
        return self.root / "models" / self.model / "release"

    @property
    def reports(self) -> Path:
        return self.root / "reports" / self.model

    def report(self, stage: str) -> Path:
        """Deterministic, in Git."""
        return self.reports / f"{stage}.json"

    def measured(self, stage: str) -> Path:
        """What a clock or a meter said: no output of a stage, and not in Git."""
        return self.reports / "measured" / f"{stage}.json"

    @property
    def plots(self) -> Path:
        """Points that DVC plots draw: deterministic, in Git."""
        return self.reports / "plots"

    def page(self, stage: str) -> Path:
        """For people: made anew each time, and not in Git."""
        return self.reports / f"{stage}.html"

    @property
    def live(self) -> Path:
        """DVCLive's folder: what training says while it runs. It holds rates, so it is not in Git."""
        return self.reports / "live"

    @property
    def work(self) -> Path:
        """What a killed stage goes on from."""
        return self.root / ".mill" / "work" / self.model
