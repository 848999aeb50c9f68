"""The benchmark for a GPU in its small mode: every step of it runs, and its file says what it should."""

from pathlib import Path

import pytest

from benchmarks import gpu, gpu_rows
from benchmarks.gpu_rows import COLUMNS, Pace, Row

STEPS = {
    "teacher's answers (8 bit)",
    "KD, from the store",
    "KD, nothing recomputed, moments in 32 bits",
    "KD, teacher beside it (8 bit)",
    "P (importance, cut, fine-tuning)",
    "perplexity",
    "answers (bf16)",
    "Q (nf4)",
    "answers (nf4)",
    "QAD",
    "D",
    "Q (nf4, gptq)",
}


@pytest.mark.timeout(300)
def test_every_step_is_measured_beside_its_plan(tmp_path: Path) -> None:
    code = gpu.main(["--small", "--device", "cpu", "--output", str(tmp_path / "gpu.md")])
    text = (tmp_path / "gpu.md").read_text()
    assert code == 0, text
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    header, rows = lines[0], {line[0]: dict(zip(lines[0], line, strict=False)) for line in lines[2:]}
    assert tuple(header) == COLUMNS
    assert rows.keys() == STEPS
    for name, row in rows.items():
        assert float(row["peak GiB"]) > 0
        planned = not name.startswith(("answers", "KD, teacher"))
        assert bool(row["planned GiB"].strip()) == planned, row
    for name in ("KD, from the store", "QAD", "perplexity", "teacher's answers (8 bit)"):
        assert float(rows[name]["tokens/s"].replace(",", "")) > 0
    assert "times as long as from the store" in rows["KD, teacher beside it (8 bit)"]["note"]
    assert "times as fast as bf16" in rows["answers (nf4)"]["note"]
    assert "the study `paper` by its plan" in text and "the same at the shares" in text


def test_a_step_that_fails_is_a_line_and_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(row: Row) -> None:
        raise ValueError("no kernel image is available\nand more")

    def run(self: gpu.Benchmark) -> None:
        self.measure("broken", broken)
        self.measure("whole", lambda row: None)

    monkeypatch.setattr(gpu.Benchmark, "run", run)
    assert gpu.main(["--small", "--device", "cpu", "--output", str(tmp_path / "gpu.md")]) == 1
    text = (tmp_path / "gpu.md").read_text()
    assert "**failed**: ValueError: no kernel image is available |" in text
    assert "| whole | 0.0 |" in text


def test_the_pace_is_that_after_the_first_report(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 101.0, 103.0])
    monkeypatch.setattr(gpu_rows.time, "perf_counter", lambda: next(clock))
    pace = Pace()
    assert pace.speed is None
    for done in (10, 40, 70):
        pace(done, 70, "loss 2.00")
    pace(70, 70, "shard 1 of 1")
    pace(71, 80, "layers quantized")
    assert pace.speed == pytest.approx(60 / 3)
