"""`workbench lab` and `workbench serve`: servers on this machine only, which ask for their token and know the store."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import workbench
from workbench.host import Host

from contract.servers import free_port
from e2e.lab_tools import CHROMIUM, PATIENCE, end
from unit.panel_cases import put_run

pytest.importorskip("jupyterlab")


def test_it_listens_on_this_machine_only_and_keeps_its_token(tmp_path: Path, environment: dict[str, str]):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "mine.ipynb").write_text("{}")
    runtime = tmp_path / "runtime"
    own = {f"JUPYTER_{name}_DIR": str(tmp_path / name.lower()) for name in ("RUNTIME", "CONFIG", "DATA")}
    command = [
        sys.executable,
        "-m",
        "workbench",
        "--store",
        "team",
        "lab",
        "--no-browser",
        "--port",
        "0",
        "--",
        "--allow-root",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment | own, stdout=log, stderr=log)
        try:
            server = _server(process, runtime, tmp_path / "log")
            assert server["hostname"] == "127.0.0.1"
            assert server["token"]
            assert Path(str(server["root_dir"])) == tmp_path / "notebooks"
            listed = json.load(urlopen(f"{server['url']}api/contents?token={server['token']}", timeout=300))
            assert [item["name"] for item in listed["content"]] == ["mine.ipynb"]
            with pytest.raises(HTTPError, match="403"):
                urlopen(f"{server['url']}api/contents", timeout=300)
            assert server["pid"] == process.pid, "the server took the command's place"
            store = Path(f"/proc/{process.pid}/environ")
            if store.exists():
                assert f"WORKBENCH_STORE={tmp_path / 'team'}".encode() in store.read_bytes().split(b"\0")
        finally:
            end(process)


def _server(process: subprocess.Popen[bytes], runtime: Path, log: Path) -> dict[str, object]:
    """What the server says of itself, once it answers."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        for path in runtime.glob("jpserver-*.json"):
            try:
                found = json.loads(path.read_text())
                with urlopen(f"{found['url']}api?token={found['token']}", timeout=5):
                    return dict(found)
            except (OSError, ValueError, KeyError):
                continue  # not written whole, or not listening yet
        time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-2000:]}")


def test_a_missing_jupyterlab_is_said(workbench_command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workbench.cli.lab_commands.find_spec", lambda name: None)
    outcome = workbench_command("lab")
    assert outcome.code == 3
    assert "pip install jupyterlab" in outcome.err


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_table_is_served_read_only_to_whoever_has_the_token(
    tmp_path: Path, environment: dict[str, str], browser: Any
):
    pytest.importorskip("voila")
    bench = workbench.open(tmp_path / "team", host=Host(found=[]))
    run = put_run(bench, {}, metrics={"accuracy": 0.75})
    put_run(bench, {}, metrics={"accuracy": 0.25})
    run.annotations.note("the one to keep")
    before = sorted(path for path in (tmp_path / "team").rglob("*"))
    port = free_port()
    own = {f"JUPYTER_{name}_DIR": str(tmp_path / name.lower()) for name in ("RUNTIME", "CONFIG", "DATA")}
    command = [
        sys.executable, "-m", "workbench", "--store", "team", "serve", "--no-browser", "--port", str(port),
        "--where", "accuracy > 0.5",
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment | own, stdout=log, stderr=log)
        try:
            address = _printed(process, tmp_path / "log")
            assert address.startswith(f"http://127.0.0.1:{port}/")
            assert "deprecated" not in (tmp_path / "log").read_text(errors="replace")
            with urlopen(f"http://127.0.0.1:{port}/", timeout=300) as answer:
                assert "/login" in answer.url, "without the token one gets no further"
            page = browser.new_page()
            page.set_default_timeout(PATIENCE)
            loaded: list[str] = []
            page.on("requestfinished", lambda request: loaded.append(request.url))
            policy = page.goto(address).headers["content-security-policy"]
            assert policy.startswith("default-src 'self'"), "the page loads nothing from elsewhere"
            page.locator(f".wbb-row[data-run='{run.id}']").wait_for()
            assert page.locator(".wbb-row").count() == 1
            assert page.locator(".wbb-search input").input_value() == "accuracy > 0.5"
            page.get_by_role("button", name="Views", exact=True).click()
            page.get_by_text("views can be opened, not saved").wait_for()
            assert page.get_by_label("Name of this view").count() == 0
            page.keyboard.press("Escape")
            page.locator(".wbb-row[data-run] .wbb-cell").nth(1).click()
            page.get_by_role("tab", name="Notes").click()
            page.get_by_text("the one to keep").wait_for()
            page.get_by_text("Tags: none. This store cannot be written here.").wait_for()
            assert page.get_by_role("button", name="Add note").count() == 0
            page.close()
            assert len(loaded) > 3
            assert not [url for url in loaded if not url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:"))]
        finally:
            end(process)
    assert sorted(path for path in (tmp_path / "team").rglob("*")) == before


def _printed(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address that the server prints, once it does."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"http://\S+token=\w+", log.read_text(errors="replace"))
        if found:
            return found.group()
        time.sleep(0.2)
    pytest.fail(f"voila did not start:\n{log.read_text(errors='replace')[-2000:]}")


def test_a_missing_voila_is_said(workbench_command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workbench.cli.lab_commands.find_spec", lambda name: None)
    outcome = workbench_command("serve")
    assert outcome.code == 3
    assert "vision-workbench[serve]" in outcome.err
