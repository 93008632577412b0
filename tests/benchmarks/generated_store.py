"""A store with as many runs as one likes, made in seconds: for measuring the index, the panels and the command line.

    python tests/benchmarks/generated_store.py FOLDER [--runs 100000]

Every run has its record (ten parameters, ten metrics, five arrays described, about 6 kB as of a small real run) and nothing
else: the files of the arrays are missing. The records are true to the format, checksum included; the same seed gives the
same store.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from google_crc32c import value as crc32c

sys.path.insert(0, str(Path(__file__).parents[1]))

from workbench.store import Store
from workbench.store.layout import array_document, plan
from workbench.store.records import root_document

from unit.store_cases import record

__all__ = ["METHODS", "STUDIES", "USERS", "generate"]

METHODS = (
    "quantization.hawq", "quantization.adaquant", "calibration.temperature", "calibration.h_calibration",
    "detection.logit_scores", "detection.discopatch", "restoration.ms_ssim", "training.classifier",
)  # fmt: skip
USERS = ("ada", "bob", "eve", "kim", "lea", "mo")
STUDIES = tuple(f"{top}/{network}" for top in ("ship", "paper", "ablation") for network in ("resnet20", "vgg16", "vit"))
STATUSES = ("complete",) * 93 + ("failed",) * 5 + ("cancelled",) * 2
FIRST = datetime(2026, 1, 1, 8, tzinfo=UTC)
DAYS = 330
_MARK = "\x00"
"""Around the number of a place in a template; no other text of a record has it (in JSON it is spelled \\u0000)."""


def generate(folder: Path, runs: int, *, seed: int = 0) -> Store:
    """Write the store; newer runs have later moments, in eleven months.

    Args:
        folder: where; made if it is missing.
        runs: how many.
        seed: of what differs from run to run.
    """
    store = Store(folder, index_folder=folder.with_name(f"{folder.name}-index"))
    store.prepare()
    template = _template()
    made: set[str] = set()
    earlier = ""
    for number, values in enumerate(_values(random.Random(seed), runs)):
        month, run = values["month"], values["id"]
        values["made_from"] = earlier if earlier and number % 10 == 0 else ""
        if month not in made:
            Path(folder, "runs", month).mkdir(parents=True)
            made.add(month)
        place = f"{folder}/runs/{month}/{run}"
        Path(place).mkdir()
        with open(f"{place}/zarr.json", "wb", buffering=0) as file:
            file.write(template(values))
        if number % 7 == 0:
            earlier = run
        if number % max(100, runs // 200) == 0:
            store.annotations.of(run)._annotations._write(_tag(run, number))
    return store


def _tag(run: str, number: int) -> Any:
    from workbench.store.annotations import _Spoken

    return _Spoken("tag", run, ("paper", "baseline", "odd")[number % 3], USERS[number % 6])


def _values(generator: random.Random, runs: int) -> Iterator[dict[str, Any]]:
    for number in range(runs):
        method = generator.choice(METHODS)
        moment = FIRST + timedelta(days=DAYS * number / runs)
        seconds = generator.expovariate(1 / 60)
        yield {
            "id": f"{moment:%Y%m%d-%H%M%S}-{method.rpartition('.')[2].replace('_', '-')}-{number:08x}",
            "month": f"{moment:%Y-%m}",
            "started": _spell(moment),
            "finished": _spell(moment + timedelta(seconds=seconds)),
            "seconds": round(seconds, 3),
            "key": f"{generator.getrandbits(256):064x}",
            "method": method,
            "user": generator.choice(USERS),
            "status": generator.choice(STATUSES),
            "seed": number % 10,
            "study": generator.choice(STUDIES) if generator.random() < 0.6 else None,
            "bits": generator.choice((2, 4, 8)),
            "criterion": generator.choice(("eig", "trace", "size")),
            "accuracy": generator.random(),
        } | {f"number_{n}": generator.random() for n in range(17)}


def _spell(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _template() -> Callable[[dict[str, Any]], bytes]:
    """A function that fills the places of a run's root document, made by the store's own writer."""
    import json

    def hole(name: str) -> str:
        return f"{_MARK}{name}{_MARK}"

    arrays, documents = {}, {}
    for name, shape in (
        ("logit", (1000, 10)),
        ("label", (1000,)),
        ("score", (1000,)),
        ("mask", (64, 64)),
        ("weight", (20, 20)),
    ):
        layout, dims = plan(shape, np.dtype("float32")), [f"{name}_{axis}" for axis in range(len(shape))]
        documents[name] = array_document(layout, dims, {"description": f"the {name} of every sample"})
        arrays[name] = {
            "dims": dims, "shape": list(shape), "dtype": "float32", "chunk": list(layout.chunk), "shard": None,
            "bytes": 4 * int(np.prod(shape)), "files": 1, "description": f"the {name} of every sample", "units": "",
            "coordinate": False,
        }  # fmt: skip
    metrics = [("accuracy", "accuracy")] + [(f"metric_{n}", f"number_{n}") for n in range(9)]
    params = {"bits": hole("bits"), "criterion": hole("criterion")} | {
        f"param_{n}": hole(f"number_{9 + n}") for n in range(8)
    }
    filled = record(
        id=hole("id"), key=hole("key"), method=hole("method"), method_title="A method of a generated store", user=hole("user"),
        started=hole("started"), heartbeat=hole("finished"), finished=hole("finished"), seconds=hole("seconds"),
        status="cancelled", seed=hole("seed"), study=hole("study"), params=params, default_params={"bits": 8, "criterion": "eig"},
        inputs={"data": {"kind": "data", "label": "digits", "digest": "d" * 64, "runs": hole("made_from")}},
        paper={"title": "A paper", "authors": "A. Author and B. Author", "year": 2026, "citation": "Author and Author 2026"},
        provenance={"python": "3.11", "torch": "2.13.0", "platform": "Linux", "packages": dict.fromkeys("abcdefghijkl", "1.2.3")},
        arrays=arrays,
        report={"summary": "Found what it was told to find.", "tables": [], "notes": ["Generated."], "views": [],
                "metrics": [{"name": name, "value": hole(place), "direction": "higher", "unit": ""} for name, place in metrics]},
    )  # fmt: skip
    text = root_document(filled, "", documents).decode().replace('"status":"cancelled"', f'"status":"{hole("status")}"')
    spelled = json.dumps(_MARK)[1:-1]
    text = text.replace(spelled, _MARK).replace(f'"{_MARK}', _MARK).replace(f'{_MARK}"', _MARK)
    start = text.index('"workbench":') + len('"workbench":')
    end = text.index(',"checksum":"', start)
    pieces = text[start:end].split(_MARK)
    before, after = text[:start].encode(), text[end + len(',"checksum":"') + 8 :].encode()

    def fill(values: dict[str, Any]) -> bytes:
        spelled = {name: json.dumps(value) for name, value in values.items()}
        spelled["made_from"] = f'["{values["made_from"]}"]' if values["made_from"] else "[]"
        body = "".join(spelled[piece] if index % 2 else piece for index, piece in enumerate(pieces)).encode()
        return b"".join((before, body, f',"checksum":"{crc32c(body):08x}'.encode(), after))

    return fill


def main() -> None:
    """Make one and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=100_000)
    arguments = parser.parse_args()
    started = time.perf_counter()
    generate(arguments.folder, arguments.runs)
    print(f"{arguments.runs} runs in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
