"""Suites: which questions, where they came from, how they become prompts, and what a right answer is. No torch."""

from specbench.suite.answers import extract_answer, is_correct
from specbench.suite.loading import LoadedSuite, fetch_suite, load_suite
from specbench.suite.places import search_path
from specbench.suite.reading import packaged_names, resolve_spec
from specbench.suite.rows import Question
from specbench.suite.schema import AnswerKind, Defaults
from specbench.suite.survey import SuiteStatus, survey
from specbench.suite.templates import CHAT, TEMPLATE_NAMES, render, render_text, rendered_hash

__all__ = [
    "CHAT",
    "TEMPLATE_NAMES",
    "AnswerKind",
    "Defaults",
    "LoadedSuite",
    "Question",
    "SuiteStatus",
    "extract_answer",
    "fetch_suite",
    "is_correct",
    "load_suite",
    "packaged_names",
    "render",
    "render_text",
    "rendered_hash",
    "resolve_spec",
    "search_path",
    "survey",
]
