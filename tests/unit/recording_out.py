"""The in-memory run of `workbench.testing`, under the name that the unit tests import it by."""

from workbench.testing.recording import RecordedResult, RecordingOut, check_report, record

__all__ = ["RecordedResult", "RecordingOut", "check_report", "record"]
