"""Our losses against the implementations that people know: TRL's of preferences and distillation, and those of
sentence-transformers, which also loads what we save. Computations by hand are in each method's own tests.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trainer.support import ROWS, artifact_path, losses
from trainer.test_gkd import batch, method, teacher  # noqa: F401  a fixture
from trainer.test_strategy import TUNERS
from trainer.test_training import make_trainer
from tunesmith.training.plan import MethodPlan, TrainPlan
from tunesmith_trainer.train import train

pytestmark = [
    pytest.mark.trainer,
    pytest.mark.filterwarnings("ignore::trl.import_utils.TRLExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:The `tokenizer` argument:FutureWarning"),
]

Make = Callable[..., TrainPlan]
WORDS = ("world", "model", "user", "system", "capital", "tiny", "Xiao Huang", "Hangzhou")
TRIPLES = [{"query": f"what of {w}?", "positive": f"I tell you of {w}", "negatives": [f"not {w}"]} for w in WORDS]
PAIRS = [
    {"sentence1": f"what of {w}?", "sentence2": f"this is {WORDS[n // 2 * 2]}", "score": float(n % 2 == 0)}
    for n, w in enumerate(WORDS)
]


@pytest.fixture
def trl(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's experimental part, as a reference only."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


def cpo(policy: Any, kind: str, beta: float, gamma: float) -> Any:
    """TRL's CPO or SimPO, of sums or means of log-probabilities."""
    from trl.experimental.cpo import CPOTrainer

    settings = SimpleNamespace(
        alpha=0.0, beta=beta, loss_type=kind, simpo_gamma=gamma, label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    return CPOTrainer.cpo_loss(settings, *policy)[0]


@pytest.mark.usefixtures("trl")
@pytest.mark.parametrize("name", ["CPO", "SimPO", "ORPO"])
def test_losses_of_pairs_are_trls(name: str) -> None:
    import torch
    from trl.experimental.orpo import ORPOTrainer
    from tunesmith_trainer.methods.pairwise import pair_loss

    torch.manual_seed(0)
    lengths = torch.randint(2, 30, (2, 16))
    sums = -torch.rand(2, 16) * 3 * lengths
    means = sums / lengths
    if name == "CPO":
        options: dict[str, Any] = {"cpo": {"beta": 0.3, "nll_weight": 0.7}}
        expected = cpo(sums, "sigmoid", 0.3, 0) - 0.7 * means[0]
    elif name == "SimPO":
        options = {"simpo": {"beta": 2.5, "gamma": 0.8}}
        expected = cpo(means, "simpo", 2.5, 0.8)
    else:
        options = {"orpo": {"odds_ratio_weight": 0.4}}
        settings = SimpleNamespace(beta=0.4, accelerator=SimpleNamespace(device="cpu"))
        expected = -means[0] - ORPOTrainer.odds_ratio_loss(settings, *means)[0]
    found, *_ = pair_loss(MethodPlan.model_validate({"type": name, **options}), *sums, *lengths)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("trl")
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_divergence_is_trls(make_plan: Make, tiny: Path, teacher: Path, tokenizer: Any, beta: float) -> None:  # noqa: F811
    import torch
    from transformers import AutoModelForCausalLM
    from trl.experimental.gkd import GKDTrainer

    plan = make_plan(tuner=TUNERS["Full"], method=method(teacher, beta=beta, temperature=0.7, onPolicy=0.0))
    trainer = make_trainer(plan)
    found = trainer.compute_loss(trainer.model, batch(trainer))
    models = [AutoModelForCausalLM.from_pretrained(path) for path in (tiny, teacher)]
    total, count = torch.zeros(()), 0
    for row in ROWS:
        prompt = tokenizer(f"<|im_start|>user\n{row['query']}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        answer = tokenizer(row["response"] + "<|im_end|>")["input_ids"]
        with torch.no_grad():
            logits = [m(torch.tensor([prompt + answer])).logits[:, len(prompt) - 1 : -1] for m in models]
        total += GKDTrainer.generalized_jsd_loss(*logits, beta=beta, temperature=0.7, reduction="sum")
        count += len(answer)
    torch.testing.assert_close(found.detach(), total / count, rtol=1e-4, atol=1e-5)


def sentence_transformer(folder: Path, mean: bool = False) -> Any:
    """The tiny model as one."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    text: Any = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    transformer = Transformer(str(folder), modality_config=text, module_output_name="token_embeddings")
    return SentenceTransformer(
        modules=[transformer, Pooling(64, pooling_mode="mean" if mean else "lasttoken")], device="cpu"
    )


@pytest.mark.parametrize("name", ["InfoNCE", "Mean", "Matryoshka", "Cosine", "Contrastive"])
def test_losses_of_embeddings_are_sentence_transformers(make_plan: Make, tiny: Path, name: str) -> None:
    import torch
    from sentence_transformers.sentence_transformer import losses as theirs

    options: dict[str, Any] = {
        "InfoNCE": {"temperature": 0.1},
        "Mean": {"temperature": 0.1, "pooling": "Mean"},
        "Matryoshka": {"temperature": 0.1, "dimensions": [8, 32]},
        "Cosine": {"loss": "Cosine"},
        "Contrastive": {"loss": "Contrastive", "margin": 0.4},
    }[name]
    rows: list[dict[str, Any]] = PAIRS if name in ("Cosine", "Contrastive") else TRIPLES
    plan = make_plan(
        rows=rows, method={"type": "Embedding", "embedding": options}, global_batch_size=8, micro_batch_size=8
    )
    train(plan)
    model = sentence_transformer(tiny, name == "Mean")
    labels = torch.tensor([float(row.get("score", 0)) for row in rows])
    names = ("sentence1", "sentence2") if rows is PAIRS else ("query", "positive", "negatives")
    columns = [[row[key][0] if key == "negatives" else row[key] for row in rows] for key in names]
    loss: Any
    if name == "Cosine":
        loss = theirs.CosineSimilarityLoss(model)
    elif name == "Contrastive":
        loss = theirs.ContrastiveLoss(model, margin=0.4)
    else:
        loss = theirs.MultipleNegativesRankingLoss(model, scale=10.0)
    if name == "Matryoshka":
        loss = theirs.MatryoshkaLoss(model, loss, [64, 32, 8])
    with torch.no_grad():
        expected = float(loss([model.preprocess(texts) for texts in columns], labels))
    assert losses(plan)[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("pooling", ["LastToken", "Mean"])
def test_sentence_transformers_loads_what_is_saved(make_plan: Make, tiny: Path, pooling: str) -> None:
    """A whole model by its folder alone, an adapter on its base: vectors are those that were trained."""
    import numpy as np
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    texts = [row["query"] for row in TRIPLES] + [row["positive"] for row in TRIPLES]  # type: ignore[operator]
    for tuner in ("Full", "LoRA"):
        plan = make_plan(
            run=tuner, rows=TRIPLES, tuner=TUNERS[tuner], max_steps=20, learning_rate=3e-3 if tuner == "Full" else 1e-2,
            method={"type": "Embedding", "embedding": {"pooling": pooling}}, global_batch_size=8, micro_batch_size=8,
        )  # fmt: skip
        folder = artifact_path(plan, train(plan))
        if tuner == "Full":
            model: Any = SentenceTransformer(str(folder), device="cpu")
            assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
            plain: Any = AutoModel.from_pretrained(folder)
        else:
            from peft import PeftModel

            model = sentence_transformer(tiny, pooling == "Mean")
            model.load_adapter(str(folder))
            plain = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny), str(folder))
        vectors = model.encode(texts, normalize_embeddings=True)
        assert (vectors[:8] @ vectors[8:].T).argmax(-1).tolist() == list(range(8))
        tokenizer: Any = AutoTokenizer.from_pretrained(tiny)
        for text, vector in zip(texts, vectors, strict=True):
            hidden = plain(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].detach().numpy()
            own = hidden[-1] if pooling == "LastToken" else hidden.mean(0)
            np.testing.assert_allclose(vector, own / np.linalg.norm(own), atol=1e-5)
