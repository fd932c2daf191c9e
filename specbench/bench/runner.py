"""One paired run: plan it, time every group, check every answer, keep everything, sum it up.

Everything slow or curious happens between groups or, like watching the machine, in a process of its own; inside a timed
region the engine appends one tuple per step and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from specbench import paths, suite
from specbench.bench import entries, machine, record
from specbench.bench.asked import Asked, ask
from specbench.bench.competitors import BASELINE
from specbench.bench.contestants import Contestant, make_contestant, plan_of
from specbench.bench.device_watch import DeviceWatch
from specbench.bench.dry_run import dry_run
from specbench.bench.equality import EqualityCheck, Noise, Verdict, measure_noise_floor, measure_rounding
from specbench.bench.execution import tell_of_graphs, tell_of_timer
from specbench.bench.folders import check_place, run_folder
from specbench.bench.learning import Learning, adapter_stores
from specbench.bench.lengths import check_max_len
from specbench.bench.outcome import State, outcome_of
from specbench.bench.renewing import renew
from specbench.bench.request import Progress, RunOutcome, RunRequest
from specbench.bench.session import Cell, Session
from specbench.engine.answer import GroupResult
from specbench.errors import EnvironmentFailed, SpecbenchError, is_out_of_memory
from specbench.events import SCHEMA, Measured, RunFinished, RunStarted, StepRow
from specbench.manifest import GroupRecord, Manifest, write_manifest
from specbench.store import pausing
from specbench.store.attempts import attempt_of, finished_groups
from specbench.store.files import cannot_write
from specbench.store.invariants import check_counts
from specbench.store.journal import Journal
from specbench.store.observed import ObservedLog
from specbench.store.viewer_cost import read_viewer_cost


def run(request: RunRequest, progress: Progress) -> RunOutcome:
    """Carry out a run, or continue one. Raises SpecbenchError where nothing could be measured; partial data is kept."""
    return carry_out(ask(request, progress), progress)


def carry_out(asked: Asked, progress: Progress) -> RunOutcome:
    """`run`, from what is settled already."""
    request, resumed = asked.request, asked.resumed
    if resumed is None:  # what a run was begun with it goes on with
        check_max_len(request, asked.suite, progress.say)
        if not request.dry_run:
            check_place(request.store)
    session = Session(request, asked.suite)
    contestants = [make_contestant(session, competitor) for competitor in asked.competitors]
    if request.dry_run:
        return dry_run(session, contestants)
    session.compile_target(progress.say)
    for contestant in contestants:
        session.compile_models(contestant.drafter)
    run_id = resumed.run_id if resumed else record.new_run_id(asked.suite.name)
    with run_folder(request.store, run_id):
        return _Run(session, contestants, run_id, resumed, progress).run()


class _Run:
    """A run under way: its journal is open, its plan is fixed."""

    def __init__(
        self, session: Session, contestants: list[Contestant], run_id: str, resumed: Manifest | None, progress: Progress
    ) -> None:
        self._session = session
        self._contestants = {contestant.competitor.label: contestant for contestant in contestants}
        self._run_id = run_id
        self._resumed = resumed
        self._progress = progress
        self._folder = paths.run_dir(session.request.store, run_id)
        self._equality: EqualityCheck | None = None
        self._complaint = ""  # of a verification that rounding does not explain
        self._broken_journal: SpecbenchError | None = None
        self._watch: DeviceWatch | None = None
        self._learning = Learning(progress.say, ObservedLog(self._folder))
        self._streams: dict[str, int] = {}
        """The repeat each carrying method's state belongs to."""

    def run(self) -> RunOutcome:
        groups = self._resumed.groups if self._resumed else plan_of(self._session, list(self._contestants.values()))
        state: State = "finished"
        watch = DeviceWatch(self._folder, gpu_uuid=machine.gpu_uuid(self._session.lm.device), say=self._progress.say)
        self._watch = watch
        stores = adapter_stores(list(self._contestants.values()), self._folder)
        with Journal(self._folder) as journal, stores, watch, machine.settled_heap():
            pausing.forget(self._folder)
            done = finished_groups(self._folder) if self._resumed else set()
            self._begin(journal, groups)
            try:
                self._prepare(journal, groups)
                self._progress.plan(num_groups=len(groups), num_done=len(done), title=self._session.suite.name)
                self._replay_streams(journal, groups, done)
                for group in groups:
                    if group.group not in done:
                        self._wait_where_asked(journal, group)
                        self._one_group(journal, group)
                        self._learn(journal, group)
            except KeyboardInterrupt:
                state = "interrupted"
            finally:
                self._learning.close()
            journal.write(RunFinished(state=state, time=record.now()))
        return outcome_of(self._session.request, self._folder, state, complaint=self._complaint, say=self._progress.say)

    # --- before the first question ---------------------------------------------------------------------------------

    def _begin(self, journal: Journal, groups: tuple[GroupRecord, ...]) -> None:
        session = self._session
        # One plain forward tells the attention in use and the cache's bytes per token.
        shortest = session.cell(session.shortest(), 0)
        session.warm_up(self._contestants[BASELINE].drafter, [shortest], with_reference=False)
        if self._resumed is None:
            manifest = record.make_manifest(
                session,
                [(c.competitor, c.drafter) for c in self._contestants.values()],
                groups,
                run_id=self._run_id,
                copy_bandwidth=machine.copy_bandwidth(session.lm.device),
            )
            try:
                write_manifest(self._folder, manifest)
            except OSError as error:
                raise cannot_write(self._folder, error, try_="--store DIR, one that has room") from error
        else:
            self._refuse_if_changed(self._resumed)
        journal.write(
            RunStarted(
                schema=SCHEMA,
                run_id=self._run_id,
                time=record.now(),
                pid=os.getpid(),
                resumed=self._resumed is not None,
            )
        )
        self._tell_viewer_cost(journal)

    def _tell_viewer_cost(self, journal: Journal) -> None:
        """What watching costs on this machine belongs to a run that may be watched."""
        try:
            cost = read_viewer_cost(self._folder.parent.parent)
        except SpecbenchError as error:
            self._progress.say(f"{error.what}; it is not stored with this run")
            return
        if cost is not None:
            journal.write(Measured(name="viewer_slowdown", value=cost.slowdown, unit="share", detail=cost.words()))

    def _refuse_if_changed(self, manifest: Manifest) -> None:
        changed = record.changed_since(manifest, self._session)
        # Without git, or from an installed copy, there is no commit to hold against another.
        changed += [each for each in record.software_changed(manifest) if each.was and each.is_now]
        drafters = {label: each.drafter for label, each in self._contestants.items()}
        words = [*map(str, changed), *record.drafters_changed(manifest, drafters)]
        if words:
            raise EnvironmentFailed(
                f"run {manifest.run_id} cannot go on: {', '.join(words)} changed since it began",
                where=str(self._folder),
                try_="the same command with what it began with, or start a new run (a recipe: delete the folder)",
            )

    def _prepare(self, journal: Journal, groups: Sequence[GroupRecord]) -> None:
        """Reference pass, noise floor, warm-up: untimed."""
        session = self._session
        if session.lm.num_processes > 1 and session.lm.dtype.itemsize < 4:
            self._progress.say(f"differing answers are judged in {session.lm.dtype}: a split target has no fp32 copy")
        self._progress.say("reference pass")
        session.make_references(self._contestants[BASELINE].drafter, self._progress)
        for where, answer in session.references.items():
            if not answer.error:
                journal.write(entries.referred(*where, answer))
        answered = [(a.prompt, a.tokens) for a in session.references.values() if len(a.tokens) > 2][:4]
        nodes = max([contestant.drafter.max_nodes for contestant in self._contestants.values()] + [1])
        session.engine.reserve(nodes)
        floor = measure_noise_floor(session.lm, answered, num_nodes=nodes)
        noise = Noise(measured=floor, rounding=measure_rounding(session.lm, answered, num_nodes=nodes))
        self._complaint = noise.complaint(session.lm.dtype)
        if self._complaint:
            self._progress.say(self._complaint)
        journal.write(Measured(name="rounding", value=noise.rounding, unit="logit"))
        journal.write(Measured(name="noise_floor", value=noise.floor, unit="logit", detail=self._complaint))
        self._equality = EqualityCheck(session.lm, session.sampling, noise_floor=noise.floor)
        # The shortest prompt: captured steps are made for its length and every greater one.
        answered_first = (q for q in session.suite.questions if not session.references[q.question_id, 0].error)
        first = min(answered_first, key=lambda question: session.num_prompt_tokens[question.question_id])
        # Every size that a group has, the last and smaller one too: nothing is captured while it is timed.
        sizes = sorted({len(group.question_ids) for group in groups}, reverse=True)
        cell = session.cell(first, 0)
        self._progress.say("warm-up")
        tell_of_timer(journal, session.graphs, session.lm.device, say=self._progress.say)
        for label, contestant in self._contestants.items():
            try:
                warmed = [
                    session.warm_up(contestant.drafter, [cell] * size, with_reference=contestant.wants_reference)
                    for size in sizes
                ]
            # What breaks here breaks again on its questions, and is recorded there.
            except Exception as error:  # noqa: BLE001
                self._progress.say(f"{label} failed while warming up: {_text_of(error)}")
                continue
            finally:
                contestant.drafter.restore(contestant.snapshot)
            journal.write(entries.warmed_up(label, warmed))
            if session.engine.graphs is not None:
                tell_of_graphs(journal, label, contestant.drafter, session.engine.graphs, say=self._progress.say)
        models = (model for contestant in self._contestants.values() for model in contestant.drafter.models)
        compile_s = sum(each.compile_s for each in (session.lm, *models))
        if compile_s:
            # Behind the last forward of a new shape.
            journal.write(Measured(name="compile_s", value=compile_s, unit="s"))

    def _replay_streams(self, journal: Journal, groups: Sequence[GroupRecord], done: set[int]) -> None:
        """Under `carry: stream` a resumed run regrows, untimed, what its methods carried at the point of
        interruption."""
        if self._session.request.carry != "stream" or not done:
            return
        repeat = next((group.repeat for group in groups if group.group not in done), None)
        for group in groups:
            contestant = self._contestants[group.method]
            if group.repeat != repeat or group.group not in done or self._refused(group):
                continue
            if contestant.drafter.carries == "stream":
                self._restore(contestant, group)
                try:
                    self._session.generate(
                        contestant.drafter, self._cells(group), with_reference=contestant.wants_reference
                    )
                except Exception as error:
                    attempt = attempt_of(self._folder, group.group)
                    if attempt is None or not attempt.failed:
                        raise EnvironmentFailed(
                            f"{group.method} answered {_shown(group)} when it was measured and cannot now: what it "
                            f"carried would be another stream's: {_text_of(error)}",
                            try_=f"--resume {self._folder.name} once more, with what the first part of the run had",
                        ) from error
                    self._progress.say(f"{group.method} failed again on {_shown(group)}: {_text_of(error)}")
                self._learning.between(contestant, group.group, journal, is_regrown=True)

    def _learn(self, journal: Journal, group: GroupRecord) -> None:
        """Under `carry: none` nothing is remembered, so nothing is learnt either."""
        if self._session.request.carry == "stream":
            self._learning.between(self._contestants[group.method], group.group, journal)

    # --- one group -------------------------------------------------------------------------------------------------

    def _wait_where_asked(self, journal: Journal, group: GroupRecord) -> None:
        """A pause is between two questions and on the record; what it cooled down is warmed up again, untimed."""
        if not pausing.is_asked(self._folder):
            return
        self._progress.say(f"paused before {group.method} on {_shown(group)}")
        journal.flush()
        seconds = pausing.wait(self._folder)
        journal.write(Measured(name="paused_s", value=seconds, unit="s"))
        self._progress.say(f"goes on after {seconds:.0f} s")
        if not self._refused(group):
            self._session.warm_up(self._contestants[BASELINE].drafter, self._cells(group), with_reference=False)

    def _cells(self, group: GroupRecord) -> list[Cell]:
        by_id = {question.question_id: question for question in self._session.suite.questions}
        return [self._session.cell(by_id[question_id], group.turn) for question_id in group.question_ids]

    def _one_group(self, journal: Journal, group: GroupRecord) -> None:
        session, contestant = self._session, self._contestants[group.method]
        refused = self._refused(group)
        if refused:
            self._failed(journal, group, refused)
            return
        self._restore(contestant, group)

        def sink(rows: Sequence[StepRow]) -> None:
            try:
                journal.steps(group.group, rows)
            except SpecbenchError as error:
                self._broken_journal = error
                raise

        cells = self._cells(group)
        for row, cell in enumerate(cells):
            journal.write(entries.started(group, row, cell))
        try:
            with self._learning.answering(contestant), machine.without_collection():
                num_single = self._num_single(contestant)
                self._mark("begin", group)
                result = session.generate(
                    contestant.drafter, cells, with_reference=contestant.wants_reference, sink=sink
                )
                self._mark("end", group)
        # The run's one broad catch: whatever a question or a method does wrong is that question's failure, not the
        # run's.
        except Exception as error:
            if error is self._broken_journal:
                raise
            text = _text_of(error)
            if group.repeat == 0:
                question, turn = group.question_ids[0], group.turn + 1
                self._progress.say(f"{group.method} failed on question {question}, turn {turn}: {text}")
            self._failed(journal, group, text)
            return
        # Before the answers: of a run that is killed in between, the group is measured again and counts twice, which
        # never hides such a step.
        if single := self._num_single(contestant) - num_single:
            journal.write(Measured(name="single_steps", value=single, unit="steps", method=group.method))
        if not result.is_draft_finite:
            journal.write(Measured(name="drafts_not_finite", value=1, unit="generations", method=group.method))
        self._finished(journal, group, cells, result)

    def _num_single(self, contestant: Contestant) -> int:
        """Steps so far that met no graph although steps are captured."""
        graphs = self._session.engine.graphs
        return 0 if graphs is None else graphs.num_single(contestant.drafter)

    def _mark(self, edge: Literal["begin", "end"], group: GroupRecord) -> None:
        # A split target draws from several cards, of which one is watched.
        if self._watch is not None and self._session.lm.num_processes == 1:
            self._watch.mark(edge, group.group)

    def _restore(self, contestant: Contestant, group: GroupRecord) -> None:
        """`carry: none`: the snapshot before every generation; `stream`: before every repeat."""
        if contestant.drafter.carries == "nothing":
            return
        if self._session.request.carry == "none" or self._streams.get(group.method) != group.repeat:
            self._learning.forget(contestant)
            contestant.drafter.restore(contestant.snapshot)
        self._streams[group.method] = group.repeat

    def _refused(self, group: GroupRecord) -> str:
        """Why the group is not asked: the reference pass, which has told it, got no answer to one of its questions."""
        for question_id in group.question_ids:
            error = self._session.references[question_id, group.turn].error
            if error:
                return error if len(group.question_ids) == 1 else f"question {question_id} of this group: {error}"
        return ""

    def _failed(self, journal: Journal, group: GroupRecord, error: str) -> None:
        by_id = {question.question_id: question for question in self._session.suite.questions}
        for row, question_id in enumerate(group.question_ids):
            category = by_id[question_id].category
            journal.write(entries.failed(group, row, category=category, error=error))
        self._progress.group_done(method=group.method, question=_shown(group), seconds=0.0, num_tokens=0, failed=True)

    def _finished(self, journal: Journal, group: GroupRecord, cells: Sequence[Cell], result: GroupResult) -> None:
        session = self._session
        num_tokens = 0
        for row, (cell, generation) in enumerate(zip(cells, result.generations, strict=True)):
            text = session.decode(generation.tokens)
            baseline = self._contestants[BASELINE].drafter
            renew(session, baseline, journal, group, cell, generation.tokens, say=self._progress.say)
            verdict = self._verdict(cell, generation.tokens)
            finished = entries.finished(
                group,
                row,
                cell,
                generation,
                result=result,
                text=text,
                verdict=verdict,
                correct=self._is_correct(cell, text),
            )
            check_counts(finished, generation.steps)
            journal.write(finished)
            num_tokens += len(generation.tokens)
        if group.method == BASELINE:
            journal.write(Measured(name="rss_bytes", value=machine.rss_bytes(), unit="bytes"))
            journal.write(Measured(name="load_average", value=machine.load_average(), unit="processes"))
        self._progress.group_done(
            method=group.method, question=_shown(group), seconds=result.total_s, num_tokens=num_tokens, failed=False
        )

    def _verdict(self, cell: Cell, tokens: tuple[int, ...]) -> Verdict | None:
        session = self._session
        if session.engine.rule == "rejection" and not session.sampling.is_greedy:
            return None
        assert self._equality is not None
        reference = session.references[cell.question.question_id, cell.turn]
        return self._equality.verdict(cell.prompt, tokens, reference.tokens, key=cell.key)

    def _is_correct(self, cell: Cell, text: str) -> bool | None:
        answer = self._session.suite.answer
        if answer is None or cell.turn != 0 or not cell.question.reference:
            return None
        return suite.is_correct(answer, text, cell.question.reference)


def _text_of(error: Exception) -> str:
    text = error.what if isinstance(error, SpecbenchError) else f"{type(error).__name__}: {error}"
    return f"out of memory: {text}" if is_out_of_memory(error) else text


def _shown(group: GroupRecord) -> str:
    more = len(group.question_ids) - 1
    return group.question_ids[0] + (f" +{more}" if more else "")
