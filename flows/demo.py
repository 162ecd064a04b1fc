"""`make demo`: the whole loop on the shipped data. Film reviews are learned, tweets come, and are learned as well.

It plays in a clone of this repository below `.mill/demo`, with ports, caches and a journal of its own, and does there
what people do, by the commands that they type. Nothing of this checkout is touched.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import polars as pl

from flows.child import path_of_commands
from flows.demo_clone import MODEL, prepare
from flows.landing import PROMOTE
from flows.live_page import newest_comparison
from flows.monitor import ALARMED, DONE
from flows.registry import Version, champion, decisions
from flows.up import running
from flows.worktree import home_of
from tasks.errors import MillError
from tasks.pages import figure
from tasks.paired import Discordance
from tasks.paths import Paths
from tasks.shards import read_rows

_SAMPLE = Path("data/samples/reviews.parquet")
_HELD_OUT, _AT_FIRST, _IN_A_REQUEST = 1000, 300, 50
_LEARNED_WITHIN_SECONDS = 1800
_MOST_MINUTES = 15
_POLL_SECONDS = 2
_WIDTH, _HEIGHT = 1200, 1700

_LABEL = pl.when(pl.col("score") > 0).then(pl.lit("positive")).otherwise(pl.lit("negative")).alias("label")


class DemoError(MillError):
    """The demonstration did not come to its end."""


@dataclass
class Demo:
    """One play: the clone that it happens in, and the folder for pictures of the pages, if any are wanted."""

    root: Path
    screens: Path | None
    started: float = field(default_factory=time.monotonic)

    def play(self, *, stay: bool) -> None:
        """All of it. Raises DemoError where something does not come as it should."""
        self._chapter("From film reviews to a first version")
        self._mill("retrain", MODEL)
        self._mill("sync")
        self._run("dvc", "checkout", "-q", str(Paths(MODEL).clean))
        with self._up():
            self._live()
            _say(f"Took {self._clock()}, of {_MOST_MINUTES} minutes at most on two cores.")
            if stay:
                _say("It goes on until Ctrl-C.")
                with contextlib.suppress(KeyboardInterrupt):
                    while True:
                        time.sleep(_POLL_SECONDS)

    def _live(self) -> None:
        """What happens while it is served. Rows to compare versions on are none that anything learns from."""
        films, tweets = self._films(), self._tweets()
        unseen, others = tweets.head(_HELD_OUT), tweets.slice(_HELD_OUT)
        first = self._champion()
        self._chapter("Film reviews that it has never seen are asked: nothing is wrong")
        self._ask(films.head(_AT_FIRST))
        self._look_at_it(alarm=False)
        self._picture("films")
        self._chapter("Tweets come: the world has moved, and labels are asked for")
        before = [self._scored(films, "films-before"), self._scored(unseen, "tweets-before")]
        self._label(self._ask(others.head(_AT_FIRST)), 100)
        self._look_at_it(alarm=True)
        self._picture("alarm", f"{MODEL}/monitor.html")
        self._chapter("Labels come in, which starts a retrain on both; the gate decides")
        self._label(self._ask(others.slice(_AT_FIRST)))
        self._look_at_it(alarm=True)
        second = self._await_better_than(first)
        self._picture("gate", self._gate_page())
        self._chapter(f"{second.tag} is live")
        self._label(self._ask(_mixed(films.slice(_AT_FIRST), unseen.head(150))))
        self._look_at_it(alarm=False)
        self._mill("sync")
        self._picture("learned")
        _say(f"\nRows that nothing was trained on, {first.tag} → {second.tag}:")
        self._compare("film reviews", before[0], self._scored(films, "films-after"))
        self._compare("tweets", before[1], self._scored(unseen, "tweets-after"))
        self._say_what_the_portal_shows()
        _say(f"It is at {self._portal}, and after this `mill up` in {self.root} shows it.")

    def _films(self) -> pl.DataFrame:
        rows = read_rows(self.root / Paths(MODEL).clean).filter(pl.col("split") == "test")
        return rows.select("id", "text", "label").sort("id").sample(fraction=1, seed=1, shuffle=True)

    def _tweets(self) -> pl.DataFrame:
        tweets = pl.read_parquet(self.root / _SAMPLE).filter((pl.col("domain") == "tweets") & (pl.col("score") != 0))
        return tweets.select("id", "text", _LABEL).sort("id").sample(fraction=1, seed=1, shuffle=True)

    @contextlib.contextmanager
    def _up(self) -> Iterator[None]:
        self._chapter("It is served")
        self._mill("up", "--detach")
        try:
            self._until(lambda: self._answers("/readyz"), "the model server", 120)
            yield
        finally:
            self._mill("down")

    @property
    def _server(self) -> str:
        here = running(self.root)
        if here is None:
            raise DemoError(f"`mill up` does not run any more. {self.root}/.mill/up/log says why.")
        return here.serves

    @property
    def _portal(self) -> str:
        return f"{self._server}/reports/"

    def _answers(self, path: str) -> bool:
        try:
            return httpx.get(self._server + path).is_success
        except httpx.HTTPError:
            return False

    def _champion(self) -> Version:
        found = champion(self.root, MODEL)
        if found is None:
            raise DemoError(f"No version of {MODEL} was promoted. `mill status` in {self.root} says why.")
        return found

    def _ask(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Ask the server, as a client would; the rows with the ids of their answers as `prediction`."""
        ids: list[str] = []
        with httpx.Client(base_url=self._server, timeout=60) as client:
            for some in rows.iter_slices(_IN_A_REQUEST):
                answers = client.post(f"/models/{MODEL}/predict", json=some.select("text").to_dicts())
                ids += [answer["id"] for answer in answers.raise_for_status().json()]
        _say(f"{len(rows):,} texts asked.")
        return rows.with_columns(prediction=pl.Series(ids, dtype=pl.String))

    def _label(self, asked: pl.DataFrame, most: int | None = None) -> None:
        """Say what would have been right."""
        told = asked.head(most or len(asked)).select(id="prediction", label="label")
        file = self.root.parent / "labels.csv"
        told.write_csv(file)
        self._mill("feedback", MODEL, str(file))

    def _look_at_it(self, *, alarm: bool) -> None:
        code = self._mill("monitor", MODEL, may_end=(DONE, ALARMED))
        if (code == ALARMED) != alarm:
            raise DemoError(f"The monitor should {'have' if alarm else 'not have'} raised an alarm here.")

    def _await_better_than(self, first: Version) -> Version:
        known = len(decisions(self.root, MODEL))
        _say("The drift event has started the retrain. Its line runs; the dashboard shows it.")
        self._until(lambda: len(decisions(self.root, MODEL)) > known, "the decision", _LEARNED_WITHIN_SECONDS)
        decided = decisions(self.root, MODEL)[-1]
        _say(str(decided["sentence"]))
        if decided["verdict"] != PROMOTE:
            raise DemoError("The gate did not promote the challenger.")
        self._until(lambda: self._champion().tag != first.tag, "the promotion", 120)
        second = self._champion()
        self._until(lambda: self._served() == second.release, "the new version's place in the server", 120)
        return second

    def _served(self) -> str:
        return str(httpx.get(f"{self._server}/models/{MODEL}").raise_for_status().json()["version"])

    def _gate_page(self) -> str:
        folder = home_of(self.root) / ".mill" / "retrain" / "reports"
        newest = max(folder.rglob("gate.html"), key=lambda page: page.parent.name)
        return f"../retrained/{newest.relative_to(folder).as_posix()}"

    def _scored(self, rows: pl.DataFrame, name: str) -> pl.DataFrame:
        """Whether the version in use answers each row rightly; without the server, so that its monitor sees nothing."""
        given, scored = self.root.parent / f"{name}.in.parquet", self.root.parent / f"{name}.parquet"
        rows.select("id", "text", right="label").write_parquet(given)
        self._mill("score", MODEL, str(given), str(scored))
        return pl.read_parquet(scored).select("id", is_right=pl.col("label") == pl.col("right"))

    def _compare(self, what: str, before: pl.DataFrame, after: pl.DataFrame) -> None:
        both = before.join(after, on="id", suffix="_after", validate="1:1")
        then, now = both["is_right"], both["is_right_after"]
        found = Discordance(len(both), int((~then & now).sum()), int((then & ~now).sum()))
        low, high = found.interval(0.025)
        _say(
            f"  {what:13} {then.sum() / len(both):.3f} → {now.sum() / len(both):.3f} of {len(both):,} right; "
            f"difference {found.effect:+.3f} ({low:+.3f} to {high:+.3f})"
        )

    def _say_what_the_portal_shows(self) -> None:
        """Before and after as the gate saw it, on its own held-out rows, for those who look at the page."""
        found = newest_comparison(self.root, MODEL)
        page = httpx.get(self._portal).raise_for_status().text
        for part in found.parts if found else ():
            values = f"{figure(part['champion'])} → {figure(part['challenger'])}"
            if (part["slice"], part["value"]) == ("domain", "tweets") and values in page:
                _say(f"The portal shows tweets {values} of {part['rows']:,} rows that the gate decided by.")
                return
        raise DemoError(f"{self._portal} does not show what became of tweets.")

    def _picture(self, name: str, page: str = "") -> None:
        """Of a page, where pictures are wanted."""
        if self.screens is None:
            return
        chromium = shutil.which("chromium")
        if chromium is None:
            raise DemoError("Pictures of the pages take Chromium: apt-get install chromium")
        self.screens.mkdir(parents=True, exist_ok=True)
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        command += ["--disable-background-networking", f"--user-data-dir={self.root.parent / 'chromium'}"]
        command += [f"--window-size={_WIDTH},{_HEIGHT}", f"--screenshot={self.screens / name}.png", self._portal + page]
        subprocess.run(command, check=True, capture_output=True, timeout=120)

    def _mill(self, *arguments: str, may_end: Sequence[int] = (0,)) -> int:
        shown = f"mill {' '.join(arguments)}"
        return self._run(sys.executable, "-m", "flows.cli", *arguments, may_end=may_end, shown=shown)

    def _run(self, *command: str, may_end: Sequence[int] = (0,), shown: str = "") -> int:
        """Run a command in the clone, let it be seen, and give its exit code."""
        shown = shown or " ".join(command)
        _say(f"$ {shown}")
        own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environment = {**own, "PATH": path_of_commands(), "PYTHONPATH": str(self.root)}
        code = subprocess.run(command, cwd=self.root, env=environment, stdin=subprocess.DEVNULL, check=False).returncode
        if code not in may_end:
            raise DemoError(f"{shown} ended with {code}, in {self.root}.")
        return code

    def _until(self, is_so: Callable[[], bool], what: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > until:
                raise DemoError(f"After {seconds:.0f} s {what} is not there. {self.root}/.mill/up/log says more.")
            time.sleep(_POLL_SECONDS)

    def _clock(self) -> str:
        seconds = round(time.monotonic() - self.started)
        return f"{seconds // 60}:{seconds % 60:02}"

    def _chapter(self, title: str) -> None:
        _say(f"\n— {self._clock()}  {title}")


def _say(text: str) -> None:
    print(text, flush=True)


def _mixed(films: pl.DataFrame, tweets: pl.DataFrame) -> pl.DataFrame:
    """Film reviews and tweets about as the second version has seen them: one tweet to three reviews, in some order."""
    both = pl.concat([films.head(3 * len(tweets)), tweets])
    return both.sample(fraction=1, seed=1, shuffle=True)


def main() -> int:
    """The command. Gives its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.demo", description="Play the whole loop on the shipped data."
    )
    parser.add_argument("--stay", action="store_true", help="leave everything running at the end, until Ctrl-C")
    parser.add_argument(
        "--screens", type=Path, metavar="FOLDER", help="put pictures of the pages there; takes Chromium"
    )
    asked = parser.parse_args()
    home = home_of(Path())
    try:
        root = prepare(home, home / ".mill" / "demo")
        screens = asked.screens.resolve() if asked.screens else None
        Demo(root, screens).play(stay=asked.stay)
    except MillError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
