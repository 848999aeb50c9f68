"""Leases, fresh processes, scoring, answering and judging on a GPU."""

import asyncio
import json
import multiprocessing
from pathlib import Path

import pytest
import torch

from compression_assets.evaluation.generation import generate
from compression_assets.evaluation.judging.likelihood import NATS, LikelihoodBackend
from compression_assets.evaluation.judging.local_judge import LocalBackend
from compression_assets.evaluation.judging.replies import Shape
from compression_assets.evaluation.perplexity import score
from compression_assets.machine.devices import visible_devices
from compression_assets.machine.lease import lease, lock_of
from compression_assets.machine.locks import try_lock
from compression_assets.text.datasets import TokenDataset, TokenRow
from compression_assets.weights.checkpoints import load_for_scoring
from compression_assets_tests.tiny_models import tiny_directory, tiny_model


def prompts(count: int) -> list[list[int]]:
    made = torch.randint(0, 256, (count, 24), generator=torch.Generator().manual_seed(0)).tolist()
    return [[1, 2, 3, *ids[: 4 + 3 * index % 20]] for index, ids in enumerate(made)]


def test_a_lease_measures_device_memory_and_shuts_others_out(tmp_path: Path) -> None:
    with lease("large", device="cuda:0", locks=tmp_path) as place:
        block = torch.ones(256 << 20, dtype=torch.uint8, device=place.device)
        assert int(place.so_far()["peak_memory_bytes"]) >= block.numel()
        assert place.about()["compute_dtype"] in ("bfloat16", "float32")
        assert try_lock(lock_of(tmp_path, visible_devices()[0]), "another") is None
        del block
    with lease("next", device="cuda:0", locks=tmp_path) as place:
        assert int(place.so_far()["peak_memory_bytes"]) < 256 << 20


def compute(device: str) -> None:
    assert float(torch.ones(1000, device=device).sum()) == 1000


def test_a_fresh_process_computes_beside_one_that_has_the_device(device: str) -> None:
    compute(device)
    other = multiprocessing.get_context("spawn").Process(target=compute, args=(device,))
    other.start()
    other.join(120)
    other.kill()
    assert other.exitcode == 0


def test_answers_together_are_answers_alone(device: str) -> None:
    model, asked = tiny_model("qwen2").to(device), prompts(7)
    together = generate(model, asked, {258}, 12, batch_size=7)
    alone = [generate(model, [prompt], {258}, 12)[0] for prompt in asked]
    assert together == alone
    ids = torch.tensor([asked[0]], device=device)
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
    assert list(together[0].tokens) == [t for t in expected[0, len(asked[0]) :].tolist() if t != 258]


def test_drawn_answers_are_the_same_twice(device: str) -> None:
    model = tiny_model("qwen2").to(device)
    one, other = (generate(model, prompts(5), {258}, 12, temperature=0.9, seed=3) for _ in range(2))
    assert one == other
    assert one != generate(model, prompts(5), {258}, 12, temperature=0.9, seed=4)


def test_scores_are_those_of_the_cpu_and_the_same_twice(tmp_path: Path, device: str) -> None:
    directory = tiny_directory(tmp_path / "model", "qwen2")
    dataset = TokenDataset([TokenRow(str(n), ids, [True] * len(ids)) for n, ids in enumerate(prompts(9))])
    here = score(load_for_scoring(directory, "cpu", torch.float32), dataset, 4)
    model = load_for_scoring(directory, device, torch.bfloat16)
    there, again = (score(model, dataset, 4, base=model) for _ in range(2))
    assert there.perplexity == pytest.approx(here.perplexity, rel=0.02)
    assert (there.nll, there.ends) == (again.nll, again.ends)
    assert there.distance is not None and max(there.distance.kl) == pytest.approx(0, abs=1e-6)


def test_judges_say_what_they_say_on_the_cpu(tmp_path: Path, device: str) -> None:
    directory = tiny_directory(tmp_path / "judge", "qwen2")
    asked = json.dumps({"before": "Who mends the net? ", "text": "Ada"})
    found = []
    for place in ("cpu", device):
        likelihood, local = (kind(directory, "w", place, "j") for kind in (LikelihoodBackend, LocalBackend))
        nats = json.loads(asyncio.run(likelihood.ask(asked, NATS)).text)["nats"]
        top = asyncio.run(local.ask("Is it right?\n\nQuestion: x\n", Shape("score"))).top
        found.append((nats, dict(top or ())))
    (nats_here, here), (nats_there, there) = found
    assert nats_there == pytest.approx(nats_here, rel=0.02)
    assert there == pytest.approx(here, abs=0.1)
