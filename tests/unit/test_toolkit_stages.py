"""Several trainings in one run: what is finished is not done again, and each training finds its own checkpoint only."""

from __future__ import annotations

import pytest
from workbench.toolkit import Stages

from unit.recording_out import RecordingOut


def test_a_checkpoint_holds_what_is_finished_and_what_is_under_way() -> None:
    out = RecordingOut()
    stages = Stages(out, 2)
    assert stages.result("first") is None
    assert stages.begin("first").restore() is None
    stages.begin("first").checkpoint({"epoch": 1})
    stages.finish("first", {"loss": 0.5})
    stages.begin("second").checkpoint({"epoch": 3})

    interrupted_in_first = Stages(RecordingOut(restored=out.checkpoints[0]), 2)
    assert interrupted_in_first.result("first") is None
    assert interrupted_in_first.begin("first").restore() == {"epoch": 1}
    assert interrupted_in_first.begin("second").restore() is None

    between = Stages(RecordingOut(restored=out.checkpoints[1]), 2)
    assert between.result("first") == {"loss": 0.5}
    assert between.begin("second").restore() is None

    interrupted_in_second = Stages(RecordingOut(restored=out.checkpoints[2]), 2)
    assert interrupted_in_second.result("first") == {"loss": 0.5}
    assert interrupted_in_second.begin("second").restore() == {"epoch": 3}


def test_progress_of_a_training_is_a_part_of_the_whole() -> None:
    out = RecordingOut()
    stages = Stages(out, 4)
    stages.begin("first").progress(1, 2, "half")
    stages.finish("first", {})
    stages.begin("second").progress(1, 4, "a quarter")
    assert [done / total for done, total, _ in out.progressed] == pytest.approx([0.5 / 4, 1.25 / 4])


def test_a_slow_store_gets_no_checkpoint_after_every_short_training() -> None:
    out = RecordingOut()
    stages = Stages(out, 3, checkpoint_seconds=3600.0)
    stages.finish("first", {"loss": 0.5})
    assert out.checkpoints == []
    stages.begin("second").checkpoint({"epoch": 1})  # `fit` says when
    assert set(out.checkpoints[0]["finished"]) == set(stages.results) == {"first"}


def test_only_the_series_asked_for_are_logged() -> None:
    out = RecordingOut()
    stages = Stages(out, 2)
    stages.begin("first", series=("loss",)).log(1, first_loss=0.5, first_learning_rate=0.1)
    stages.begin("second").log(1, second_loss=0.25, second_learning_rate=0.1)
    assert set(out.series) == {"first_loss", "second_loss", "second_learning_rate"}


def test_trainings_that_were_not_needed_count_as_done() -> None:
    out = RecordingOut()
    stages = Stages(out, 4)
    stages.finish("first", {})
    stages.done = 3
    stages.begin("last").progress(1, 2)
    assert [done / total for done, total, _ in out.progressed] == [3.5 / 4]
