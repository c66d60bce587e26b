"""Four parts and five: what the conditions are, and that they are measured as in GMC's own."""

import pytest

from mmcl_book.experiments import gmc, more_parts, small
from mmcl_core.methods import GMC, LateFusion


@pytest.mark.parametrize("condition", more_parts.CONDITIONS)
def test_each_condition_is_what_its_name_says(monkeypatch, condition: str) -> None:
    config = more_parts.CONDITIONS[condition]
    many, method = condition.split(", ")
    monkeypatch.setattr(gmc, "fit", lambda *of, **how: None)
    monkeypatch.setattr(gmc, "TESTED", 30)
    trained = gmc.train(0, **config, scenes=60)
    assert len(trained.data.parts) == {"four": 4, "five": 5}[many]
    assert isinstance(trained.method, GMC if method == "GMC" else LateFusion)
    assert config["epochs"] == more_parts.EPOCHS
    assert config.get("dropout") == (None if method == "GMC" else 0.5)


def test_a_run_is_that_of_gmc(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(gmc, "run", lambda seed, **config: asked.append((seed, config)) or {"a": 1})
    config = more_parts.CONDITIONS["five, GMC"]
    assert more_parts.run(4, **config) == {"a": 1}
    assert asked == [(4, config)]


def test_trials_are_measured_on_other_scenes() -> None:
    for name, tried in more_parts.TRIALS.items():
        parts = more_parts.CONDITIONS[name]["parts"]
        for of in tried.settings.values():
            assert of["asked"] == small.VALIDATION_SEED
            assert of["parts"] == parts
