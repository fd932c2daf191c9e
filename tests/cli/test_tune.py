"""`specbench tune` as typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Ran

SHORT = ("--limit", "2", "--max-new-tokens", "12", "--repeats", "1", "--threads", "1")


def test_a_tuning_prints_predicted_beside_measured_and_the_command_to_use(
    specbench: Callable[..., Ran], tmp_path: Path
) -> None:
    words = ("tune", "--method", "prompt_lookup", "--grid", "prompt_lookup.num_tokens=2,4", "--top", "1")
    ran = specbench(*words, *SHORT, "--store", str(tmp_path))
    assert ran.code == 0, ran.err
    for word in ("predicted", "measured", "num_tokens=2", "num_tokens=4", "95 % interval", "verifying n nodes costs"):
        assert word in ran.out
    last = ran.out.strip().splitlines()[-1]
    assert last.startswith("specbench run demo --methods autoregressive,prompt_lookup")
    assert "--set prompt_lookup.num_tokens=" in last


def test_as_json_without_a_confirming_run(specbench: Callable[..., Ran], tmp_path: Path) -> None:
    words = ("tune", "--method", "draft_model", "--grid", "draft_model.num_tokens=1,2", "--top", "0", "--json")
    ran = specbench(*words, *SHORT, "--store", str(tmp_path))
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["schema"] == 1 and found["confirmed"] == [] and len(found["candidates"]) == 2
    assert found["candidates"][0]["predicted"] >= found["candidates"][1]["predicted"]


def test_a_method_with_nothing_to_tune_and_a_wrong_number_are_usage_errors(specbench: Callable[..., Ran]) -> None:
    ran = specbench("tune", "--method", "oracle")
    assert ran.code == 2 and "names nothing to tune" in ran.err and "--grid oracle.OPTION" in ran.err
    ran = specbench("tune", "--method", "lstm", "--top", "-1")
    assert ran.code == 2 and "--top" in ran.err
