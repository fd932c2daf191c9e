"""Methods are found, described and checked without being imported; exactly one is imported when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from specbench import paths, registry
from specbench.card import Card
from specbench.errors import EnvironmentFailed, UsageError

CARD = """
name: {name}
title: A method
paper: ""
kind: chain
summary: Drafts.
options:
  length: {{type: int, default: 4, minimum: 1, maximum: 16, help: Tokens drafted.}}
  rate: {{type: float, default: 1, help: A rate.}}
  mode: {{type: str, default: chain, choices: [chain, tree], help: Shape.}}
  adaptive: {{type: bool, default: false, help: Adapt.}}
  model: {{type: str, default: null, help: The draft model.}}
requires: [draft_model]
demo: {{model: demo-draft, length: 3}}
"""


def make_method(root: Path, name: str, *, card: str = CARD, drafter: str | None = None) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "method.yaml").write_text(card.format(name=name), encoding="utf-8")
    code = "def build(options, target, inner=None):\n    return dict(options)\n" if drafter is None else drafter
    (folder / "drafter.py").write_text(code, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _no_methods_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """specbench appears to be installed beside an empty `methods` package, whatever the checkout holds."""
    site = tmp_path / "site"
    (site / "specbench").mkdir(parents=True)
    (site / "methods").mkdir()
    (site / "methods" / "__init__.py").touch()
    monkeypatch.setattr(paths, "PACKAGE", site / "specbench")
    for name in _loaded():
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(site)
    yield
    # Where none was loaded before, monkeypatch would leave the made-up package to the tests that come after.
    for name in _loaded():
        del sys.modules[name]


def _loaded() -> list[str]:
    return [name for name in sys.modules if name == "methods" or name.startswith("methods.")]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return tmp_path / "site"


def test_a_sibling_method_is_listed_with_its_card(site: Path) -> None:
    make_method(site / "methods", "alpha")
    [entry] = registry.cards()
    assert (entry.name, entry.source, entry.error) == ("alpha", "specbench", "")
    assert entry.card is not None and entry.card.kind == "chain"


def test_listing_imports_no_drafter(site: Path) -> None:
    make_method(site / "methods", "explosive", drafter="raise RuntimeError('imported')")
    assert [entry.error for entry in registry.cards()] == [""]


def test_load_imports_exactly_the_drafter_asked_for(site: Path) -> None:
    make_method(site / "methods", "alpha")
    make_method(site / "methods", "explosive", drafter="raise RuntimeError('imported')")
    build = registry.load("alpha")
    assert build({"length": 2}, None) == {"length": 2}  # type: ignore[arg-type,comparison-overlap]
    assert "methods.explosive.drafter" not in sys.modules


def test_a_drafter_that_cannot_be_imported_is_an_environment_error_with_its_file(site: Path) -> None:
    make_method(site / "methods", "explosive", drafter="import no_such_package_anywhere")
    with pytest.raises(EnvironmentFailed, match=r"explosive.*no_such_package_anywhere") as caught:
        registry.load("explosive")
    assert caught.value.where.endswith("explosive/drafter.py")


def test_a_drafter_without_build_is_refused(site: Path) -> None:
    make_method(site / "methods", "hollow", drafter="x = 1")
    with pytest.raises(EnvironmentFailed, match=r"defines no build\(\)"):
        registry.load("hollow")


def test_unknown_method_names_the_nearest(site: Path) -> None:
    make_method(site / "methods", "prompt_lookup")
    with pytest.raises(UsageError) as caught:
        registry.card("promt_lookup")
    assert "did you mean 'prompt_lookup'?" in caught.value.try_ and caught.value.where == "--method(s)"
    with pytest.raises(UsageError) as caught:
        registry.card("promt_lookup", named_by="methods show")
    assert caught.value.where == "methods show"


@pytest.mark.parametrize(
    ("card", "complaint"),
    [
        ("name: [", "not YAML"),
        (CARD.replace("kind: chain", "kind: forest"), "kind"),
        (CARD + "colour: blue\n", "colour"),
        (CARD.replace("default: 4", "default: 99"), "above the maximum 16"),
        (CARD.replace("length: 3", "lenght: 3"), "did you mean 'length'"),
        (CARD.replace("name: {name}", "name: other"), "found as 'broken'"),
        ("just a sentence", "valid dictionary"),
    ],
)
def test_a_broken_card_is_a_row_with_its_error(site: Path, card: str, complaint: str) -> None:
    make_method(site / "methods", "broken", card=card)
    make_method(site / "methods", "sound")
    broken, sound = registry.cards()
    assert broken.card is None and complaint in broken.error
    assert sound.card is not None
    with pytest.raises(UsageError, match="broken"):
        registry.card("broken")


def test_a_card_without_drafter_is_a_row_with_its_error(site: Path) -> None:
    (make_method(site / "methods", "cardonly") / "drafter.py").unlink()
    [entry] = registry.cards()
    assert "drafter.py is missing" in entry.error


def test_another_package_named_methods_is_refused_and_located(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise somebody else's code would be imported under a method's name."""
    make_method(site / "methods", "alpha")
    stranger = tmp_path / "elsewhere" / "methods"
    stranger.mkdir(parents=True)
    (stranger / "__init__.py").touch()
    monkeypatch.syspath_prepend(stranger.parent)
    [entry] = registry.cards()
    assert entry.card is None and str(stranger) in entry.error


def test_methods_dir_finds_and_loads_with_relative_imports(tmp_path: Path) -> None:
    folder = make_method(
        tmp_path / "mine", "mine", drafter="from .helper import value\ndef build(o, t, inner=None): return value\n"
    )
    (folder / "helper.py").write_text("value = 42\n", encoding="utf-8")
    dirs = (tmp_path / "mine",)
    assert registry.entry("mine", methods_dirs=dirs).source == str(dirs[0])
    assert registry.load("mine", methods_dirs=dirs)({}, None) == 42  # type: ignore[arg-type,comparison-overlap]


def test_methods_dir_without_methods_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no method in"):
        registry.cards(methods_dirs=(tmp_path,))


def test_a_name_taken_twice_keeps_the_first_and_shows_the_second_with_its_error(site: Path, tmp_path: Path) -> None:
    make_method(site / "methods", "alpha")
    make_method(tmp_path / "mine", "alpha")
    first, second = registry.cards(methods_dirs=(tmp_path / "mine",))
    assert first.source == "specbench" and first.card is not None
    assert second.card is None and "taken by the method from specbench" in second.error
    assert registry.card("alpha", methods_dirs=(tmp_path / "mine",)).name == "alpha"


def install(root: Path, *, package: str, points: dict[str, str], drafter: str | None = None) -> None:
    """A third-party distribution as pip would leave it: the package's folder and its .dist-info."""
    make_method(root / package, "theirs", drafter=drafter)
    (root / package / "__init__.py").write_text("raise RuntimeError('the package was imported')", encoding="utf-8")
    info = root / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
    lines = "\n".join(f"{name} = {value}" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[specbench.methods]\n{lines}\n", encoding="utf-8")


@pytest.mark.parametrize("value", ["acme_methods.theirs", "acme_methods.theirs.drafter"])
def test_an_installed_package_is_discovered_without_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    install(tmp_path / "third", package="acme_methods", points={"theirs": value})
    monkeypatch.syspath_prepend(tmp_path / "third")
    [entry] = registry.cards()
    assert (entry.name, entry.source, entry.error) == ("theirs", "acme_methods", "")
    assert "acme_methods" not in sys.modules


def test_an_installed_package_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "third", package="acme_loaded", points={"theirs": "acme_loaded.theirs"})
    (tmp_path / "third" / "acme_loaded" / "__init__.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "third")
    assert registry.load("theirs")({"a": 1}, None) == {"a": 1}  # type: ignore[arg-type,comparison-overlap]


@pytest.mark.parametrize("value", ["acme_gone.theirs", "acme_here.nothing"])
def test_an_entry_point_to_nowhere_is_a_row_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    install(tmp_path / "third", package="acme_here", points={"theirs": value})
    monkeypatch.syspath_prepend(tmp_path / "third")
    [entry] = registry.cards()
    assert entry.card is None and value in entry.error


class TestOptions:
    @pytest.fixture
    def card(self, site: Path) -> Card:
        make_method(site / "methods", "alpha")
        return registry.card("alpha")

    def test_text_takes_the_type_of_the_option(self, card: Card) -> None:
        given = {"length": "7", "rate": "0.5", "adaptive": "yes", "model": "org/name", "mode": "tree"}
        assert registry.check_options(card, given) == {
            "length": 7,
            "rate": 0.5,
            "mode": "tree",
            "adaptive": True,
            "model": "org/name",
        }

    def test_what_is_not_given_is_the_default_in_the_options_type(self, card: Card) -> None:
        values = registry.check_options(card, {})
        assert values == {"length": 4, "rate": 1.0, "mode": "chain", "adaptive": False, "model": None}
        assert isinstance(values["rate"], float)

    def test_on_the_embedded_target_the_cards_demo_values_come_before_the_defaults(self, card: Card) -> None:
        values = registry.check_options(card, {"length": "9"}, target_is_demo=True)
        assert (values["length"], values["model"]) == (9, "demo-draft")

    def test_an_unknown_option_names_the_nearest(self, card: Card) -> None:
        with pytest.raises(UsageError, match="unknown option 'lenght'") as caught:
            registry.check_options(card, {"lenght": "1"})
        assert "did you mean 'length'?" in caught.value.try_

    @pytest.mark.parametrize(
        ("name", "value", "complaint"),
        [
            ("length", "0", "below the minimum 1"),
            ("length", "17", "above the maximum 16"),
            ("length", "2.5", "not of type int"),
            ("length", True, "not of type int"),
            ("rate", "fast", "not of type float"),
            ("rate", "nan", "not a finite number"),
            ("mode", "chian", "did you mean 'chain'"),
            ("adaptive", "maybe", "true or false"),
        ],
    )
    def test_a_wrong_value_is_refused_with_what_is_allowed(
        self, card: Card, name: str, value: object, complaint: str
    ) -> None:
        with pytest.raises(UsageError, match=complaint) as caught:
            registry.check_options(card, {name: value})
        assert caught.value.where == f"--set alpha.{name}={value}"

    def test_a_method_that_needs_a_draft_model_is_ready_only_with_one(self, card: Card) -> None:
        reason = registry.is_ready(card, target_is_demo=False)
        assert reason is not None and "--set alpha.model=…" in reason
        assert registry.is_ready(card, target_is_demo=True) is None
        assert registry.is_ready(card, target_is_demo=False, options={"model": "org/name"}) is None


def test_every_card_of_this_checkout_is_sound() -> None:
    """Runs against the real `methods` folder, cards only."""
    home = Path(__file__).resolve().parent.parent / "methods"
    for path in sorted(home.glob("*/method.yaml")):
        card = Card.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        assert card.name == path.parent.name, path
