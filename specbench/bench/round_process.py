"""A round of learning in a process beside the answers, on the same cores: `learning=concurrent`.

It learns from a copy of what this repeat has seen and writes its candidate elsewhere; the run alone promotes. It may
only run while its own method answers and is stopped otherwise, so that what it takes from the cores is paid by that
method's clock and by no other's. One process learns all rounds of a method: torch is loaded once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from specbench.adapt import candidate as candidates
from specbench.adapt.adaptation import Adaptation, InUse
from specbench.adapt.candidate import Candidate
from specbench.adapt.versions import VERSIONS, AdapterStore
from specbench.errors import EnvironmentFailed, SpecbenchError
from specbench.metrics import Interval
from specbench.training.learner import Job
from specbench.training.rounds import Round, dropped, is_watched

_PATIENCE_S = 10.0
"""A signal takes effect within milliseconds; on a machine that swaps, seconds."""


class Learner:
    """The process of one method (`specbench.training.learner`). It stands still until it is told to go on."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="specbench-learner-")
        self._said = Path(self._scratch.name) / "said"
        with self._said.open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "specbench.training.learner"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=err,
            )
        self._handle = psutil.Process(self._process.pid)
        self.pause()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_dead(self) -> bool:
        return self._process.poll() is not None

    def begin(self, job: Job) -> None:
        """Raises OSError where it died."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job.as_json()).encode() + b"\n")
        self._process.stdin.flush()

    def pause(self) -> None:
        """Others are timed now: returns when it has stopped."""
        if self.is_dead:
            return
        self._handle.suspend()
        ends = time.monotonic() + _PATIENCE_S
        while not self.is_dead and self._handle.status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < ends, "a stopped process goes on running"
            time.sleep(0.001)

    def go_on(self) -> None:
        if not self.is_dead:
            self._handle.resume()

    def last_words(self) -> str:
        """What a dead one said of it."""
        said = self._said.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no word"]
        return f"its process ended ({self._process.poll()}): {said[-1]}"

    def kill(self) -> None:
        if not self.is_dead:
            self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._scratch.cleanup()


class RoundProcess:
    """One round under way in a learner. Begins stopped."""

    def __init__(self, adaptation: Adaptation, domain: str, options: Mapping[str, Any], learner: Learner) -> None:
        """options: the method's. Raises EnvironmentFailed or OSError where a disk refuses or the learner died."""
        assert adaptation.store is not None, "its answers lie in a store"
        self._adaptation = adaptation
        self.domain = domain
        self._learner = learner
        self._scratch = tempfile.TemporaryDirectory(prefix="specbench-round-")
        self._into = Path(self._scratch.name) / "store"
        self._answer = Path(self._scratch.name) / "answer"
        self._began = adaptation.domain(domain).in_use
        self._ran_s = 0.0
        self._since: float | None = None
        """When it last went on; None while it stands still."""
        try:
            learner.begin(
                Job(
                    store=self._given(adaptation, domain),
                    into=self._into,
                    # In the run's own type.
                    options={**options, "dtype": str(adaptation.lm.dtype).removeprefix("torch.")},
                    temperature=adaptation.temperature,
                    rule=adaptation.rule,
                    domain=domain,
                    version=self._began.number,
                    num_new=len(adaptation.domain(domain).memory.new),
                    # As the run itself: on its device, on its cores alone, of the ids that its target can say.
                    device=str(adaptation.lm.device),
                    threads=torch.get_num_threads(),
                    num_shared=adaptation.num_shared,
                    num_ids=adaptation.num_ids,
                    answer=self._answer,
                )
            )
        except BaseException:
            self._scratch.cleanup()
            raise

    def _given(self, adaptation: Adaptation, domain: str) -> Path:
        """A store of what this repeat has seen so far. The run's own file holds other repeats, too: answers to
        questions that this one has yet to ask.

        Raises EnvironmentFailed where the disk refuses.
        """
        assert adaptation.store is not None, "its versions lie in a store"
        given = AdapterStore(Path(self._scratch.name) / "given", max_bytes=1 << 62)
        given.folder.mkdir()
        (given.folder / VERSIONS).symlink_to((adaptation.store.folder / VERSIONS).resolve())
        memory = adaptation.domain(domain).memory
        for observed in (*memory.held_out, *memory.old, *memory.new):
            given.rows.append(observed)
        candidates.save(given.folder, domain, adaptation.domain(domain).candidate, base_hash=adaptation.lm.weights_hash)
        if given.rows.warning:
            raise EnvironmentFailed(given.rows.warning, where=str(given.folder))
        return given.folder

    def pause(self) -> None:
        """Others are timed now: returns when it has stopped."""
        if self._since is not None:
            self._ran_s += time.monotonic() - self._since
            self._since = None
        self._learner.pause()

    def go_on(self) -> None:
        """Its own method answers now."""
        self._since = time.monotonic()
        self._learner.go_on()

    @property
    def is_over(self) -> bool:
        """Whether `finish` has something to say."""
        return self._answer.exists() or self._learner.is_dead

    def finish(self) -> Round:
        """What came of it; a promoted candidate becomes a version and is drafted with."""
        adaptation, domain = self._adaptation, self._adaptation.domain(self.domain)
        try:
            if not self._answer.exists():
                raise EnvironmentFailed(self._learner.last_words())
            body = json.loads(self._answer.read_text(encoding="utf-8"))
            if "error" in body:
                raise EnvironmentFailed(body["error"])
            found = Round(**{field.name: body[field.name] for field in fields(Round)})
            # Its own clock went on while it stood still for other methods.
            found = replace(found, seconds=min(found.seconds, self._ran_s))
            if found.gain is not None:
                found = replace(found, gain=Interval(*found.gain))
            is_current = domain.in_use is self._began
            if found.outcome == "promoted" and is_current and is_watched(adaptation.plan, domain):
                made = AdapterStore(self._into)
                learnt = self._learnt(began=made.numbers()[-1])
                domain.candidate = None if learnt is None else replace(learnt, began=domain.in_use.number)
                why = f"{found.why}, but version {domain.in_use.number} has yet to be judged live: it learns on"
                return replace(found, outcome="kept", why=why, version=domain.in_use.number)
            if found.outcome != "promoted":
                if is_current:
                    domain.candidate = self._learnt(began=domain.in_use.number)
                return replace(found, version=domain.in_use.number)
            if not is_current:
                gone = "round dropped: the adapter it began from was rolled back meanwhile"
                return replace(found, outcome="dropped", why=gone, version=domain.in_use.number)
            assert adaptation.store is not None
            made = AdapterStore(self._into)
            made_as = made.numbers()[-1]
            promoted = made.load(made_as, base_hash=adaptation.lm.weights_hash)
            learnt = self._learnt(began=made_as)
            number = adaptation.store.add(promoted)
            adaptation.store.activate(number, self.domain)
            adaptation.swap(
                self.domain, InUse(number=number, weights=promoted.weights, parent=replace(domain.in_use, parent=None))
            )
            domain.candidate = None if learnt is None else replace(learnt, began=number)
            return replace(found, version=number)
        except (SpecbenchError, OSError, ValueError, KeyError, TypeError) as error:
            # As a serial round: what it may have died of is not handed on to the next.
            if domain.in_use is self._began:
                domain.candidate = None
            return dropped(self.domain, domain, error.what if isinstance(error, SpecbenchError) else str(error))
        finally:
            self._scratch.cleanup()

    def _learnt(self, *, began: int) -> Candidate | None:
        return candidates.load(self._into, self.domain, base_hash=self._adaptation.lm.weights_hash, began=began)

    def forget(self) -> None:
        """The run is over before it is, or goes back to its beginning; its learner is killed."""
        self._scratch.cleanup()
