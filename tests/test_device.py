"""`lhydra train --device`: what is chosen, and that nothing is left behind where the towers are trained elsewhere.

No GPU is needed. `Far` is a tensor that says it is on another device and is computed on the CPU: as there, an operation
that mixes it with a tensor of the CPU is refused, and so is reading it as an array.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lhydra.bundle.model import ModelInfo
from lhydra.cli import main
from lhydra.data.dataset import Dataset
from lhydra.errors import ConfigError
from lhydra.training import device, ranks, step
from lhydra.training.data import TrainingData, load
from lhydra.training.head import Fitted
from lhydra.training.model import Network
from lhydra.training.step import Tensors, losses, prepare
from lhydra.training.teachers import Teachers
from lhydra.training.teachers import fit as fit_teachers
from lhydra.training.train import Run, _new, train
from tests.conftest import TINY_TRAINING

AWAY = "meta"  # the name that the other device goes by
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
QUICK = replace(TINY_TRAINING, epochs=2)


class Far(Tensor):
    """A tensor on the other device; `near` holds its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> "Far":
        make: Any = Tensor._make_wrapper_subclass
        strides, offset = near.stride(), near.storage_offset()
        made: Far = make(cls, near.shape, strides=strides, storage_offset=offset, dtype=near.dtype, device=AWAY)
        made.near = near
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} outside of Elsewhere")


class Elsewhere(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes what is on the other device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
        far = {id(part.near): part for part in given if isinstance(part, Far)}
        if far and func not in COPIES and any(part.dim() and not isinstance(part, Far) for part in given):
            raise RuntimeError(f"{func}: tensors on two devices")
        asked = kwargs.get("device")
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map_only(Far, lambda part: part.near, (args, kwargs))
        out = func(*args, **kwargs)
        there = bool(far) if asked is None else torch.device(asked).type == AWAY
        if not there:
            return out
        return tree_map_only(Tensor, lambda part: far[id(part)] if id(part) in far else Far(part), out)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trains towers on the other device. The next batch is not made by a thread: a mode belongs to one thread."""
    module = importlib.import_module("torch.optim.optimizer")
    fused = [*module._get_fused_kernels_supported_devices(), AWAY]
    monkeypatch.setattr(module, "_get_fused_kernels_supported_devices", lambda: fused)
    monkeypatch.setattr("lhydra.training.train.ahead", map)
    monkeypatch.setattr(device, "choose", lambda asked: AWAY if asked == "cuda" else "cpu")
    with Elsewhere():  # type: ignore[no-untyped-call]
        yield


def on_cpu(network: Network) -> dict[str, Tensor]:
    """Parameters of a network that has come back."""
    state = network.state_dict()
    assert {str(part.device) for part in state.values()} == {"cpu"}
    return state


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")  # `Far` is copied to
@pytest.mark.parametrize("full_softmax", [20_000, 100], ids=["full softmax", "sampled, tables by row"])
def test_no_tensor_is_left_behind_and_moving_changes_no_bit(
    full_softmax: int, small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: None
) -> None:
    config = replace(QUICK, full_softmax=full_softmax, uniform_negatives=200)

    def content(network: Network, data: TrainingData, tensors: Tensors, *rest: Any) -> None:
        on_cpu(network)
        assert str(tensors.dense.device) == "cpu"

    def head(*given: Any) -> Fitted:
        return Fitted(0, 0.0, {})

    def export(network: Network, data: Any, table: Any, out: Path, info: ModelInfo, *rest: Any) -> ModelInfo:
        torch.save(on_cpu(network), out / "graph")
        return info

    taught: dict[int, Teachers] = {}

    def teach(data: TrainingData, *rest: Any) -> Teachers:
        plays = len(data.train.rows)
        return taught[plays] if plays in taught else taught.setdefault(plays, fit_teachers(data, *rest))

    monkeypatch.setattr("lhydra.training.teachers.fit", teach)
    monkeypatch.setattr("lhydra.training.content.fit", content)
    monkeypatch.setattr("lhydra.training.head.fit", head)
    monkeypatch.setattr("lhydra.training.train.export", export)
    infos = [
        train(small_dataset, tmp_path / where, replace(config, device=where), refit=True) for where in ("cpu", "cuda")
    ]
    assert infos[0] == infos[1]
    chosen = asdict(config.resolved(small_dataset.plays))
    assert infos[0].config == {name: value for name, value in chosen.items() if name != "device"}
    for name in ("last", "best"):
        one, other = (load_file(tmp_path / where / "checkpoint" / f"{name}.safetensors") for where in ("cpu", "cuda"))
        assert same(one, other)
    graphs = [torch.load(tmp_path / where / "graph") for where in ("cpu", "cuda")]
    assert same(*graphs)
    # A run whose epochs were made on one device goes on on the other, here with the refit.
    train(small_dataset, tmp_path / "cpu", replace(config, device="cuda"), resume=True, refit=True)
    assert same(torch.load(tmp_path / "cpu" / "graph"), graphs[0])


def test_the_other_device_refuses_what_a_gpu_refuses() -> None:
    with Elsewhere():  # type: ignore[no-untyped-call]
        near, far = torch.ones(3), torch.ones(3, device=AWAY)
        for mix in (lambda: far + near, lambda: far[near.long()], lambda: torch.where(near > 0, far, 0)):
            with pytest.raises(RuntimeError, match="two devices"):
                mix()  # type: ignore[no-untyped-call]
        with pytest.raises(RuntimeError, match="not supported"):
            far.numpy()
        assert torch.equal((far * 2).cpu(), near * 2)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes a machine look as if it had so many GPUs, and torchrun had started so many processes on it."""

    def made(gpus: int = 0, mps: bool = False, processes: int = 1, rank: int = 0) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        for name, value in (("WORLD_SIZE", processes), ("LOCAL_WORLD_SIZE", processes), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, str(value))

    return made


def test_auto_takes_a_gpu_where_each_process_has_one(machine: Callable[..., None]) -> None:
    for given, chosen in (
        ({}, "cpu"),
        ({"mps": True}, "mps"),
        ({"gpus": 1, "mps": True}, "cuda:0"),
        ({"gpus": 4, "processes": 3, "rank": 2}, "cuda:2"),
        ({"gpus": 1, "processes": 2, "rank": 1}, "cpu"),
        ({"mps": True, "processes": 2}, "cpu"),
    ):
        machine(**given)
        assert device.choose("auto") == chosen
        assert device.choose("cpu") == "cpu"


def test_a_device_that_is_not_there_is_refused_in_one_line(
    machine: Callable[..., None], tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine()
    for asked in ("cuda", "mps"):
        assert main(["train", str(tiny_dataset.path), str(tmp_path / "model"), "--device", asked]) == 1
        [line] = capsys.readouterr().err.splitlines()
        found = f"{asked}, of which PyTorch {torch.__version__} finds none"
        expected = f"cpu, or auto, or a build of PyTorch for {asked} and its driver"
        assert line == f"lhydra train: --device: found {found}, expected {expected}"
    assert not (tmp_path / "model").exists()
    machine(gpus=1, processes=2)
    with pytest.raises(ConfigError, match=r"finds 1 for 2 process.*expected cpu, or auto, or fewer processes"):
        device.choose("cuda")


def test_processes_with_a_gpu_each_speak_over_nccl_and_gloo(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("torch.distributed.init_process_group", asked.append)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    machine(gpus=2, processes=2, rank=1)
    ranks.start("cuda:1")
    ranks.start()
    assert asked == ["cuda:1", "cpu:gloo,cuda:nccl", "gloo"]


def test_in_bf16_the_towers_say_nearly_the_same(tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, as a GPU is asked to: losses stay float32, and losses and gradients are those of float32 nearly."""
    data = load(tiny_dataset)
    users = np.flatnonzero(np.diff(data.train.offsets) > 0)[:64]
    config = replace(QUICK, id_dropout=0.0, dropout=0.0)
    run = Run(data, Tensors.of(data), fit_teachers(data, config.dim, 0), config, users, 64)
    network, _ = _new(run)
    torch.nn.init.normal_(network.item_tower.content[-1].weight, std=0.05)  # type: ignore[arg-type]
    batch = prepare(data, run.tensors, run.teachers, users, np.random.default_rng(0), config)
    results = []
    for context in (device.half, lambda _: torch.autocast("cpu", torch.bfloat16)):
        monkeypatch.setattr(step, "half", context)
        network.zero_grad()
        pair = losses(network, run.tensors, batch, {}, config, 0.15)
        assert {part.dtype for part in pair} == {torch.float32}
        sum(pair).backward()  # type: ignore[union-attr]
        towers = [*network.item_tower.named_parameters(), *network.user_tower.named_parameters()]
        results.append((torch.stack(pair).detach(), {name: p.grad.clone() for name, p in towers if p.grad is not None}))
    (whole, gradients), (half, halves) = results
    assert not torch.equal(whole, half)
    torch.testing.assert_close(half, whole, rtol=1e-3, atol=0.0)
    for name, gradient in gradients.items():
        assert halves[name].dtype == torch.float32
        assert (halves[name] - gradient).norm() <= 0.05 * gradient.norm() + 1e-6, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU HERE: --device cuda IS NOT TESTED on this machine")
def test_a_gpu_learns_as_well_as_a_cpu(tiny_dataset: Dataset, tmp_path: Path) -> None:
    one, two = (
        train(tiny_dataset, tmp_path / where, replace(TINY_TRAINING, device=where)).quality for where in ("cpu", "cuda")
    )
    for part in ("retrieval", "cascade"):
        assert two[part]["ndcg@10"] == pytest.approx(one[part]["ndcg@10"], rel=0.15)
