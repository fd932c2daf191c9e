"""Options of a run: ranges and contradictions are refused by name, defaults are filled and said in full."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from specbench import registry
from specbench.bench.competitors import competitors
from specbench.bench.defaults import full_command, ready_methods, with_defaults
from specbench.bench.request import GridAxis, RunRequest, Setting, Variant, parse_grid, parse_setting, parse_variant
from specbench.card import Card
from specbench.discovery import Entry
from specbench.errors import UsageError
from specbench.suite.schema import Defaults


def test_a_setting_keeps_everything_after_the_first_equals_sign() -> None:
    assert parse_setting("draft_model.model=./a.b/c=d,e") == Setting("draft_model", "model", "./a.b/c=d,e")


def test_the_remedy_for_a_malformed_setting_can_be_typed() -> None:
    with pytest.raises(UsageError) as caught:
        parse_setting("draft_model")
    method, option, _ = parse_setting(caught.value.try_.removeprefix("--set "))
    assert option in registry.card(method).options


@pytest.mark.parametrize("text", ["draft_model", "model=x", "a.b.c=1", ".k=1", "m.=1", "m.k=", "m.k= "])
def test_a_setting_of_another_shape_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_setting(text)
    assert caught.value.where == "--set" and caught.value.exit_code == 2


def test_a_grid_axis_lists_its_values_in_order() -> None:
    assert parse_grid("redrafter.beam_width=1, 2,4") == GridAxis("redrafter", "beam_width", ("1", "2", "4"))


@pytest.mark.parametrize("text", ["m.k=1,1", "m.k=1,,2", "m.k=,"])
def test_a_grid_with_repeated_or_empty_values_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="empty or repeated"):
        parse_grid(text)


@pytest.mark.parametrize(
    ("field", "value", "option"),
    [
        ("limit", 0, "--limit"),
        ("max_new_tokens", 0, "--max-new-tokens"),
        ("temperature", -0.1, "--temperature"),
        ("temperature", float("nan"), "--temperature"),
        ("top_k", -1, "--top-k"),
        ("top_p", 0.0, "--top-p"),
        ("top_p", 1.1, "--top-p"),
        ("min_p", 1.5, "--min-p"),
        ("repetition_penalty", 0.0, "--repetition-penalty"),
        ("seed", -1, "--seed"),
        ("batch_size", 0, "--batch-size"),
        ("repeats", 0, "--repeats"),
        ("threads", 0, "--threads"),
        ("fail_under", 0.0, "--fail-under"),
        ("rule", "couple", "--rule"),
        ("carry", "all", "--carry"),
        ("dtype", "float8", "--dtype"),
        ("device", "gpu", "--device"),
        ("device", "cuda:x", "--device"),
    ],
)
def test_an_option_out_of_range_is_named(field: str, value: Any, option: str) -> None:
    with pytest.raises(UsageError) as caught:
        RunRequest(suite="demo", **{field: value})
    assert caught.value.where == option


def test_a_misspelt_choice_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        RunRequest(suite="demo", rule="couple")  # type: ignore[arg-type]
    assert "did you mean 'coupled'?" in caught.value.try_


def test_a_run_needs_a_suite_or_a_run_to_resume_and_not_both() -> None:
    with pytest.raises(UsageError, match="no suite"):
        RunRequest()
    with pytest.raises(UsageError, match="suite included"):
        RunRequest(suite="demo", resume="20260101-abc")
    assert RunRequest(resume="20260101-abc").suite is None


def test_resume_refuses_an_option_that_the_manifest_decides() -> None:
    with pytest.raises(UsageError, match="--temperature cannot be changed"):
        RunRequest(resume="r", temperature=1.0)
    with pytest.raises(UsageError, match="--set cannot be changed"):
        RunRequest(resume="r", settings=(Setting("m", "k", "1"),))


def test_a_method_named_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="named twice"):
        RunRequest(suite="demo", methods=("a", "b", "a"))


def test_a_setting_for_a_method_that_does_not_run_is_refused() -> None:
    """It would otherwise be ignored, and the user would believe it was measured."""
    with pytest.raises(UsageError, match="not among the methods") as caught:
        RunRequest(suite="demo", methods=("prompt_lookup",), settings=(Setting("promt_lookup", "k", "1"),))
    assert "did you mean 'prompt_lookup'?" in caught.value.try_


def test_the_same_option_by_set_and_by_grid_is_refused() -> None:
    with pytest.raises(UsageError, match="given twice"):
        RunRequest(suite="demo", settings=(Setting("m", "k", "1"),), grid=(GridAxis("m", "k", ("1", "2")),))


def test_a_variant_holds_options_that_compete_together() -> None:
    found = parse_variant("redrafter:beam_width=2, num_tokens=6")
    assert found == Variant("redrafter", (("beam_width", "2"), ("num_tokens", "6")))
    assert parse_variant(str(found)) == found


def test_a_named_variant_is_read_as_it_is_written() -> None:
    found = parse_variant(" wide = redrafter:beam_width=4,weights=a/b=c")
    assert found == Variant("redrafter", (("beam_width", "4"), ("weights", "a/b=c")), "wide")
    assert parse_variant(str(found)) == found
    for text in ("=redrafter:beam_width=4", "a b=redrafter:beam_width=4", "[x]=redrafter:beam_width=4"):
        with pytest.raises(UsageError, match="cannot name a variant"):
            parse_variant(text)


@pytest.mark.parametrize("text", ["redrafter", "redrafter:", "redrafter:beam_width", ":a=1", "redrafter:a=1,,b=2"])
def test_a_variant_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_variant(text)
    assert caught.value.where == "--variant"


def test_variants_are_refused_twice_and_beside_the_same_option() -> None:
    one = Variant("m", (("k", "1"),))
    with pytest.raises(UsageError, match="same variant"):
        RunRequest(suite="demo", variants=(one, one))
    with pytest.raises(UsageError, match=r"m\.k is given twice"):
        RunRequest(suite="demo", variants=(one,), settings=(Setting("m", "k", "2"),))
    with pytest.raises(UsageError, match="not among the methods"):
        RunRequest(suite="demo", methods=("n",), variants=(one,))
    with pytest.raises(UsageError, match="one name"):
        RunRequest(suite="demo", variants=(one._replace(name="a"), Variant("m", (("k", "2"),), "a")))


def test_rows_of_variants_are_called_by_name_or_by_their_options() -> None:
    request = with_defaults(
        RunRequest(
            suite="demo",
            methods=("autoregressive", "prompt_lookup", "hybrid"),
            settings=(Setting("hybrid", "inner", "prompt_lookup"),),
            grid=(GridAxis("prompt_lookup", "continuations", ("1", "2")),),
            variants=(
                parse_variant("wide=prompt_lookup:num_tokens=20,max_ngram=5"),
                parse_variant("prompt_lookup:num_tokens=3,max_ngram=2"),
            ),
        ),
        Defaults(),
    ).request
    labels = [each.label for each in competitors(request)][2:]
    assert labels[:4] == [
        "prompt_lookup:wide[continuations=1]",
        "prompt_lookup:wide[continuations=2]",
        "prompt_lookup[num_tokens=3,max_ngram=2,continuations=1]",
        "prompt_lookup[num_tokens=3,max_ngram=2,continuations=2]",
    ]
    assert labels[4] == "hybrid(prompt_lookup:wide)[prompt_lookup.continuations=1]"
    wide = competitors(request)[2]
    assert (wide.options["num_tokens"], wide.options["max_ngram"]) == (20, 5), (
        "the name hides no option from the record"
    )


def entry(name: str, kind: str = "chain", *, needs: bool = False, error: str = "") -> Entry:
    options = {"model": {"type": "str", "default": None, "help": "The draft model."}} if needs else {}
    card = Card.model_validate(
        {"name": name, "title": name, "paper": "", "kind": kind, "summary": "", "options": options}
        | ({"demo": {"model": "demo-draft"}} if needs else {})
    )
    return Entry(name=name, source="test", folder=Path(), package="", card=None if error else card, error=error)


@pytest.fixture
def _four_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    found = (
        entry("apple"),
        entry("autoregressive", "baseline"),
        entry("broken", error="its card is torn"),
        entry("draft_model", needs=True),
    )
    monkeypatch.setattr(registry, "cards", lambda methods_dirs=(): found)


@pytest.mark.usefixtures("_four_methods")
class TestDefaults:
    def test_on_the_embedded_target_everything_sound_is_ready_baseline_first(self) -> None:
        ready = ready_methods(RunRequest(suite="demo"), target="demo")
        assert ready.names == ("autoregressive", "apple", "draft_model")
        assert ready.left_out == ("broken: its card is torn",)

    def test_elsewhere_a_method_without_its_draft_model_is_left_out_with_the_reason(self) -> None:
        ready = ready_methods(RunRequest(suite="demo"), target="org/model")
        assert ready.names == ("autoregressive", "apple")
        assert any("draft_model: needs --set draft_model.model=…" in line for line in ready.left_out)

    def test_elsewhere_it_is_ready_once_its_model_is_set(self) -> None:
        request = RunRequest(suite="demo", settings=(Setting("draft_model", "model", "org/small"),))
        assert "draft_model" in ready_methods(request, target="org/model").names

    def test_ready_can_be_asked_for_by_name_whatever_the_suite_would_take(self) -> None:
        setting = Setting("draft_model", "model", "org/small")
        asked = RunRequest(suite="demo", target="org/model", methods=("ready",), settings=(setting,))
        filled = with_defaults(asked, Defaults(methods=("prompt_lookup",)))
        assert filled.request.methods == ("autoregressive", "apple", "draft_model")
        assert "--methods autoregressive,apple,draft_model" in filled.command

    def test_the_embedded_target_takes_one_thread_and_another_what_torch_takes(self) -> None:
        """Two threads for a model of 4 M parameters wait for each other: on a busy machine 20 times slower."""
        defaults = Defaults(methods=("prompt_lookup",))
        assert with_defaults(RunRequest(suite="demo"), defaults).request.threads == 1
        assert with_defaults(RunRequest(suite="demo", threads=2), defaults).request.threads == 2
        other = with_defaults(RunRequest(suite="demo", target="./elsewhere"), defaults)
        assert other.request.threads is None and "--threads" not in other.command

    def test_what_was_said_is_kept_and_the_rest_is_filled(self) -> None:
        filled = with_defaults(
            RunRequest(suite="demo", temperature=0.7, limit=2), Defaults(max_new_tokens=96, limit=8, repeats=3)
        )
        request = filled.request
        assert (request.temperature, request.limit, request.max_new_tokens, request.repeats) == (0.7, 2, 96, 3)
        assert (request.target, request.rule, request.seed, request.top_p) == ("demo", "coupled", 0, 1.0)
        assert filled.taken == ("target", "max_new_tokens", "repeats", "threads", "methods")

    def test_filling_twice_changes_nothing(self) -> None:
        once = with_defaults(RunRequest(suite="demo"), Defaults())
        twice = with_defaults(once.request, Defaults(max_new_tokens=1))
        assert twice.request == once.request and twice.taken == ()

    def test_the_full_command_says_what_the_defaults_said(self) -> None:
        words = shlex.split(with_defaults(RunRequest(suite="suites/my tests.yaml"), Defaults()).command)
        assert words[:3] == ["specbench", "run", "suites/my tests.yaml"]
        for option, value in [
            ("--target", "demo"),
            ("--methods", "autoregressive,apple,draft_model"),
            ("--max-new-tokens", "256"),
            ("--temperature", "0"),
            ("--repeats", "3"),
        ]:
            assert words[words.index(option) + 1] == value
        assert "--limit" not in words


def test_the_full_command_of_a_full_request_keeps_every_digit_and_every_part() -> None:
    request = RunRequest(
        suite="demo",
        temperature=0.123456789,
        methods=("a", "b"),
        settings=(Setting("a", "k", "x y"),),
        grid=(GridAxis("b", "n", ("1", "2")),),
        variants=(Variant("a", (("w", "1"), ("d", "3"))),),
        dry_run=True,
        data=(Path("d1"), Path("d2")),
        methods_dirs=(Path("m"),),
        stop=("\n\n",),
    )
    words = shlex.split(full_command(request))
    assert words == [
        *("specbench", "run", "demo", "--methods", "a,b", "--temperature", "0.123456789", "--dry-run"),
        *("--set", "a.k=x y", "--grid", "b.n=1,2", "--variant", "a:w=1,d=3"),
        *("--data", "d1", "--data", "d2", "--methods-dir", "m", "--stop", "\n\n"),
    ]
