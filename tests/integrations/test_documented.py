"""docs/frameworks.md, as written: its blocks train on two workers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from cser_ray import CSER, GRBS
from cser_ray.integrations.workers import flat_optimizer
from tests.integrations.workers import as_torchrun, network
from tests.processes import run_processes

PAGE = (Path(__file__).parents[2] / "docs" / "frameworks.md").read_text()
generator = torch.Generator().manual_seed(1)
DATA = TensorDataset(torch.randn(32, 4, generator=generator), torch.randint(3, (32,), generator=generator))


def run_section(title: str, names: Callable[[], dict[str, Any]], optimizer: str) -> None:
    """Run the block of a section on two workers, given some names: its optimizer has taken steps, and knows of both."""
    code = PAGE.partition(f"\n## {title}\n")[2].partition("```python\n")[2].partition("```")[0]

    def work() -> tuple[int, Tensor]:
        as_torchrun()
        given = names()
        exec(compile(code, title, "exec"), given)
        flat = flat_optimizer(eval(optimizer, given))
        return flat.t, flat.communicator.size

    assert [(steps > 0, workers) for steps, workers in run_processes(2, work, 60)] == [(True, 2)] * 2


def test_hugging_face_trainer(tmp_path: Path) -> None:
    """The Trainer with another class and `optimizer_cls_and_kwargs`."""
    transformers = pytest.importorskip("transformers")
    texts = torch.randint(8, (64, 8), generator=torch.Generator().manual_seed(1))
    rows = [{"input_ids": text, "labels": text} for text in texts]
    config = transformers.GPT2Config(
        vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )

    def names() -> dict[str, Any]:
        model = transformers.GPT2LMHeadModel(config)
        return {"model": model, "train": rows, "held_out": rows[:8], "out": str(tmp_path)}

    run_section("Hugging Face Trainer", names, "trainer.optimizer")
    assert (tmp_path / "final" / "model.safetensors").exists()


def test_accelerate(tmp_path: Path) -> None:
    """The loop with another Accelerator."""
    pytest.importorskip("accelerate")

    def names() -> dict[str, Any]:
        return {
            "model": network(0),
            "loader": DataLoader(DATA, batch_size=4),
            "out": str(tmp_path),
            "loss_of": cross_entropy,
            "evaluate": lambda model: model(DATA.tensors[0]),
        }

    run_section("Accelerate", names, "optimizer")
    assert (tmp_path / "final" / "model.safetensors").exists()


def test_lightning(tmp_path: Path) -> None:
    """The Trainer with the strategy."""
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network: nn.Module = network(0)

        def configure_optimizers(self) -> CSER:
            return CSER(self.parameters(), lr=0.1, reset_compressor=GRBS(4))

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            return cross_entropy(self.network(batch[0]), batch[1])

    def names() -> dict[str, Any]:
        return {"module": Module(), "loader": DataLoader(DATA, batch_size=4), "out": str(tmp_path)}

    run_section("Lightning", names, "trainer.optimizers[0]")
