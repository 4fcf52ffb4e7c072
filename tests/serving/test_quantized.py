"""What a real vLLM leaves as its last words where it has no kernel for what our export has made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from serving.engines import started
from tunesmith.training.plan import Place, QuantizationPlan
from tunesmith_trainer.export import export

pytestmark = [
    pytest.mark.trainer,
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:.*is an Enum subclass"),
]


def test_an_engine_without_a_kernel_for_the_model_leaves_the_reason_as_its_last_words(
    forge: Any, tmp_path: Path
) -> None:
    """The log ends with other words, of the process before the engine's."""
    folder = tmp_path / "model"
    folder.mkdir()
    plan = QuantizationPlan(method="W4A16", group_size=32, tolerance=1)
    export(Place(uri="x", path=str(forge.base())), plan, folder)
    with started(folder, tmp_path, VLLM_DISABLED_KERNELS="CPUWNA16LinearKernel") as engine:
        assert engine.code not in (None, 0)
        words = engine.last_words.read_text()
        assert words.startswith("ValueError: Failed to find a kernel that can implement the WNA16 linear layer"), words
        assert "CPUWNA16LinearKernel" in words
        assert "CPUWNA16LinearKernel" not in "".join(engine.log.read_text().splitlines(keepends=True)[-5:])
