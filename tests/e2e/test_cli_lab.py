"""`workbench lab`: a server on this machine only, which asks for its token and knows the store."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

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
            listed = json.load(urlopen(f"{server['url']}api/contents?token={server['token']}", timeout=20))
            assert [item["name"] for item in listed["content"]] == ["mine.ipynb"]
            with pytest.raises(HTTPError, match="403"):
                urlopen(f"{server['url']}api/contents", timeout=20)
            assert server["pid"] == process.pid, "the server took the command's place"
            store = Path(f"/proc/{process.pid}/environ")
            if store.exists():
                assert f"WORKBENCH_STORE={tmp_path / 'team'}".encode() in store.read_bytes().split(b"\0")
        finally:
            process.terminate()
            process.wait(30)


def _server(process: subprocess.Popen[bytes], runtime: Path, log: Path) -> dict[str, object]:
    """What the server says of itself, once it answers."""
    deadline = time.monotonic() + 90
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
