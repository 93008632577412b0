"""What the workbench does to dask in a process that is not its own: settings and logs of others stay theirs."""

from __future__ import annotations

import asyncio
import logging

import dask
import distributed
import distributed.client
import pytest
from workbench.execution.dask_log import quiet_dask
from workbench.execution.local_reads import reading_here


@pytest.fixture
def told():
    """Messages that dask's client writes into its log."""
    quiet_dask()
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Handler()
    distributed.client.logger.addHandler(handler)
    yield messages
    distributed.client.logger.removeHandler(handler)


@pytest.mark.parametrize("error", [FileNotFoundError("of the user"), asyncio.CancelledError("of the user")])
def test_errors_of_what_a_user_has_dask_call_are_told(told, error):
    def callback() -> None:
        raise error

    try:
        callback()
    except BaseException:
        distributed.client.logger.exception("Error in callback")
    assert told == ["Error in callback"]


def test_the_traceback_of_giving_up_on_a_scheduler_that_is_gone_is_not(told):
    class Gone:
        """As much of a client as it takes to look for its scheduler."""

        class scheduler_comm:
            class comm:
                @staticmethod
                def closed() -> bool:
                    return True

        status, _timeout, futures = "running", 5.0, {}

        async def _ensure_connected(self, timeout: float) -> None:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(distributed.Client._reconnect(Gone()))  # type: ignore[arg-type]
    assert told == []


@pytest.fixture
def unset():
    with dask.config.set(scheduler=None):
        yield


def test_the_place_to_compute_is_this_thread_meanwhile_and_what_it_was_afterwards(unset):
    with dask.config.set(scheduler="threads"):
        with reading_here(), reading_here():
            assert dask.config.get("scheduler") == "synchronous"
        assert dask.config.get("scheduler") == "threads"


def test_a_client_that_is_closed_meanwhile_stays_closed(unset):
    """Put back as the place to compute, it would make every later use of dask in this process an error."""
    clients = dask.config.set(scheduler="dask.distributed")  # as a client does when it is opened
    with reading_here():
        clients.__exit__(None, None, None)  # as it does when it is closed
        assert dask.config.get("scheduler") is None
    assert dask.config.get("scheduler") is None


def test_what_somebody_sets_meanwhile_holds(unset):
    reading = reading_here()
    reading.__enter__()
    with dask.config.set(scheduler="threads"):
        reading.__exit__(None, None, None)
        assert dask.config.get("scheduler") == "threads"
