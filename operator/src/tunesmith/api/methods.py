"""How a model learns: the methods of spec.method, each with its options under a member of its own name."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field

from tunesmith.api.base import ATOMIC, Model, ModelSource, rule, rules

MethodType = Literal[
    "PreTraining",
    "SFT",
    "DPO",
    "KTO",
    "CPO",
    "SimPO",
    "ORPO",
    "RewardModel",
    "GRPO",
    "PPO",
    "GKD",
    "Classification",
    "Embedding",
    "Reranker",
]
Weight = Annotated[float, Field(ge=0, le=1000)]
Positive = Annotated[float, Field(gt=0, le=1000)]
Probability = Annotated[float, Field(ge=0, le=1)]


class SFT(Model):
    """Supervised fine-tuning on conversations."""

    loss_on: Literal["Assistant", "LastAssistant", "All"] = "Assistant"
    """Which tokens are learned: every assistant turn, the last one, or the whole conversation."""
    empty_reasoning: Literal["Learned", "Ignored"] = "Learned"
    """Where the template of a thinking model writes that a turn has no reasoning: whether that is learned. Ignored
    keeps a model's thinking through training on answers without it."""


class PreTraining(Model):
    """(Continued) pre-training on plain text. There are no options yet."""


class DPO(Model):
    """Direct preference optimisation (arXiv 2305.18290): rows with a chosen and a rejected answer."""

    beta: Positive = 0.1
    """How strongly the model is held to the reference."""
    loss: Literal["Sigmoid", "Hinge", "IPO", "Robust"] = "Sigmoid"
    """Sigmoid (the paper's), Hinge (arXiv 2305.10425), IPO (arXiv 2310.12036) or Robust (arXiv 2403.00409)."""
    label_smoothing: Annotated[float, Field(ge=0, le=0.49)] = 0.0
    """Share of labels that are taken to be wrong. For losses Sigmoid and Robust."""
    sft_weight: Weight = 0.0
    """Weight of the chosen answer's negative log-likelihood that is added (RPO, arXiv 2404.19733)."""
    reference_model: ModelSource | None = None
    """The reference. Default: spec.model as it is before the training."""


class KTO(Model):
    """Kahneman-Tversky optimisation (arXiv 2402.01306): rows with one answer and a label, good or bad."""

    beta: Positive = 0.1
    """How strongly the model is held to the reference."""
    desirable_weight: Weight = 1.0
    """Weight of good answers."""
    undesirable_weight: Weight = 1.0
    """Weight of bad answers."""
    reference_model: ModelSource | None = None
    """The reference. Default: spec.model as it is before the training."""


class CPO(Model):
    """Contrastive preference optimisation (arXiv 2401.08417), without a reference model."""

    beta: Positive = 0.1
    """Scale of the difference of log-probabilities."""
    nll_weight: Weight = 1.0
    """Weight of the chosen answer's negative log-likelihood."""


class SimPO(Model):
    """Simple preference optimisation (arXiv 2405.14734): length-normalised, without a reference model."""

    beta: Positive = 2.0
    """Scale of the difference of mean log-probabilities."""
    gamma: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Margin by which the chosen answer should win."""


class ORPO(Model):
    """Odds-ratio preference optimisation (arXiv 2403.07691), without a reference model."""

    odds_ratio_weight: Weight = 0.1
    """Weight of the odds-ratio term beside the chosen answer's negative log-likelihood (the paper's lambda)."""


class RewardModel(Model):
    """A model that scores answers, from rows with a chosen and a rejected one (Bradley-Terry)."""

    center_weight: Weight = 0.0
    """Weight of the squared sum of the two scores, which keeps them around zero (arXiv 2312.09244)."""


class PythonReward(Model):
    """A function of yours: `def reward(completions: list[str], **columns) -> list[float]`."""

    uri: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^(configmap|pvc|file)://.+\.py$")]
    """The file, for example configmap://rewards/reward.py. Its code runs in the trainer."""
    function: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_]\w*$")] = "reward"
    """The function's name."""


class HttpReward(Model):
    """An endpoint that gets `{"prompts": [...], "completions": [...], <columns>}` and answers `{"rewards": [...]}`."""

    url: Annotated[str, Field(min_length=8, max_length=1024, pattern=r"^https?://.+$")]
    """Where the requests go."""
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """How long an answer is waited for."""


class Reward(Model):
    """One of the rewards that are added up."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("has(self.python) == (self.type == 'Python')", "python is for type Python, which needs it"),
            rule("has(self.model) == (self.type == 'Model')", "model is for type Model, which needs it"),
            rule("has(self.http) == (self.type == 'HTTP')", "http is for type HTTP, which needs it"),
        )
    )
    type: Literal["Accuracy", "Format", "Cosine", "Repetition", "SoftOverlong", "Python", "Model", "HTTP"]
    """Accuracy (the answer equals the row's `solution`), Format (<think>…</think> comes first), Cosine (shorter right
    answers and longer wrong ones score more, arXiv 2502.03373), Repetition (n-grams said again cost), SoftOverlong
    (arXiv 2503.14476), or a reward of yours: a Python function, a reward model, an HTTP endpoint."""
    weight: Annotated[float, Field(ge=-1000, le=1000)] = 1.0
    """Its weight in the sum."""
    python: PythonReward | None = None
    """For type Python."""
    model: ModelSource | None = None
    """For type Model: what a FineTuneJob of method RewardModel made, or any sequence classifier with one label."""
    http: HttpReward | None = None
    """For type HTTP."""


Rewards = Annotated[list[Reward], Field(min_length=1, max_length=16, json_schema_extra=ATOMIC)]


class Rollout(Model):
    """How answers are sampled."""

    max_completion_length: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """Tokens of an answer at most."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Of the sampling."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of the sampling."""
    backend: Literal["Transformers", "VLLMColocate"] = "Transformers"
    """Transformers' own generation, or vLLM in the training processes (needs GPUs)."""


class GRPO(Model):
    """Group relative policy optimisation (arXiv 2402.03300): several answers to a prompt compete."""

    rewards: Rewards
    """What is rewarded."""
    rollout: Rollout = Rollout()
    """How answers are sampled."""
    num_generations: Annotated[int, Field(ge=2, le=1024)] = 8
    """Answers to each prompt."""
    beta: Weight = 0.0
    """Weight of the divergence from the reference. 0: no reference model is held."""
    epsilon: Positive = 0.2
    """Clipping of the probability ratio, below; and above, where epsilonHigh is not set."""
    epsilon_high: Positive | None = None
    """Clipping above (DAPO: 0.28)."""
    loss: Literal["GRPO", "DAPO", "DrGRPO", "BNPO"] = "DAPO"
    """How tokens are averaged: GRPO (each answer alike), DAPO (each token of the global batch alike, arXiv 2503.14476),
    DrGRPO (by the constant maxCompletionLength, arXiv 2503.20783) or BNPO (each token of the micro-batch alike)."""
    importance_sampling: Literal["Token", "Sequence"] = "Token"
    """Ratio by token, or by whole answer (GSPO, arXiv 2507.18071)."""
    scale_rewards: Literal["Group", "Batch", "None"] = "Group"
    """Advantages are divided by the standard deviation of the group, of the batch, or not at all."""
    iterations: Annotated[int, Field(ge=1, le=64)] = 1
    """Optimizer passes over one set of answers."""


class PPO(Model):
    """Proximal policy optimisation (arXiv 1707.06347) with a value head and generalised advantages
    (arXiv 1506.02438), the penalty for leaving the reference per token (arXiv 2203.02155).
    """

    rewards: Rewards
    """What is rewarded."""
    rollout: Rollout = Rollout()
    """How answers are sampled."""
    kl_weight: Weight = 0.05
    """Weight of the divergence from the reference in each token's reward."""
    discount: Probability = 1.0
    """gamma."""
    gae_lambda: Probability = 0.95
    """lambda of the generalised advantage."""
    epsilon: Positive = 0.2
    """Clipping of the probability ratio."""
    value_epsilon: Positive = 0.2
    """Clipping of the value's change."""
    value_weight: Weight = 0.1
    """Weight of the value's loss."""
    iterations: Annotated[int, Field(ge=1, le=64)] = 4
    """Optimizer passes over one set of answers."""


class GKD(Model):
    """Generalised knowledge distillation (arXiv 2306.13649) from a teacher with the same vocabulary."""

    teacher: ModelSource
    """The model that is learned from."""
    on_policy: Probability = 0.5
    """Share of steps on the student's own answers; the others are on the dataset's (the paper's lambda)."""
    beta: Probability = 0.5
    """0: forward KL; 1: reverse KL; between: the generalised Jensen-Shannon divergence."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.9
    """Of the student's sampling and of both distributions."""
    max_completion_length: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """Tokens of the student's answers at most."""


class Classification(Model):
    """A head over the last token that tells classes apart: rows with a `label`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.problem == 'Regression' || has(self.labels)", "labels must be given unless problem is Regression"
            ),
            rule("!has(self.labels) || self.problem != 'Regression'", "labels are not for problem Regression"),
        )
    )
    problem: Literal["SingleLabel", "MultiLabel", "Regression"] = "SingleLabel"
    """One class, any number of classes, or a number."""
    labels: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=128)]],
            Field(min_length=2, max_length=4096, json_schema_extra=ATOMIC),
        ]
        | None
    ) = None
    """Names of the classes. A row's label is a name, or its place in this list from 0."""


class Embedding(Model):
    """Texts (and images) as vectors: rows with a query, a positive, and maybe hard negatives; or pairs with a label."""

    loss: Literal["InfoNCE", "Cosine", "Contrastive"] = "InfoNCE"
    """InfoNCE (arXiv 1807.03748: the positive among the batch's and the row's negatives, over all processes), Cosine
    (a pair's similarity is its label) or Contrastive (a pair is alike or not, with a margin)."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.05
    """InfoNCE: similarities are divided by it."""
    margin: Annotated[float, Field(ge=0, le=2)] = 0.5
    """Contrastive: pairs that are not alike should be farther apart than this."""
    pooling: Literal["LastToken", "Mean"] = "LastToken"
    """Which hidden states become the vector."""
    dimensions: Annotated[
        list[Annotated[int, Field(ge=1, le=65_536)]], Field(max_length=16, json_schema_extra=ATOMIC)
    ] = []
    """Leading dimensions that should do by themselves (Matryoshka, arXiv 2205.13147), beside the whole vector."""


class Reranker(Model):
    """A score for a query and a document: rows with a query, a positive, and negatives."""

    loss: Literal["Pointwise", "Listwise"] = "Listwise"
    """Pointwise (each document is relevant or not) or Listwise (the positive against its negatives)."""


# The member of spec.method with the options of each type.
MEMBERS: dict[str, str] = {
    "PreTraining": "preTraining",
    "SFT": "sft",
    "DPO": "dpo",
    "KTO": "kto",
    "CPO": "cpo",
    "SimPO": "simpo",
    "ORPO": "orpo",
    "RewardModel": "rewardModel",
    "GRPO": "grpo",
    "PPO": "ppo",
    "GKD": "gkd",
    "Classification": "classification",
    "Embedding": "embedding",
    "Reranker": "reranker",
}
NEEDED = ("GRPO", "PPO", "GKD", "Classification")
"""Types whose member has no complete defaults."""


def attribute(type_: MethodType) -> str:
    """The attribute of Method with the options of a type."""
    return next(name for name, field in Method.model_fields.items() if field.alias == MEMBERS[type_])


class Method(Model):
    """How the model learns: a type, and the options of that type under the member of its name."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *(
                rule(f"!has(self.{member}) || self.type == '{name}'", f"{member} is only for type {name}")
                for name, member in MEMBERS.items()
            ),
            *(
                rule(f"self.type != '{name}' || has(self.{MEMBERS[name]})", f"type {name} needs {MEMBERS[name]}")
                for name in NEEDED
            ),
        )
    )
    type: MethodType
    """PreTraining (plain text), SFT (conversations), DPO, KTO, CPO, SimPO, ORPO (preferences), RewardModel (a score),
    GRPO, PPO (rewards), GKD (a teacher), Classification, Embedding or Reranker."""
    pre_training: PreTraining | None = None
    """Options of type PreTraining."""
    sft: SFT | None = None
    """Options of type SFT."""
    dpo: DPO | None = None
    """Options of type DPO."""
    kto: KTO | None = None
    """Options of type KTO."""
    cpo: CPO | None = None
    """Options of type CPO."""
    simpo: SimPO | None = None
    """Options of type SimPO."""
    orpo: ORPO | None = None
    """Options of type ORPO."""
    reward_model: RewardModel | None = None
    """Options of type RewardModel."""
    grpo: GRPO | None = None
    """Options of type GRPO."""
    ppo: PPO | None = None
    """Options of type PPO."""
    gkd: GKD | None = None
    """Options of type GKD."""
    classification: Classification | None = None
    """Options of type Classification."""
    embedding: Embedding | None = None
    """Options of type Embedding."""
    reranker: Reranker | None = None
    """Options of type Reranker."""

    @property
    def options(self) -> Model | None:
        """The member of the type, where it is set."""
        found: Model | None = getattr(self, attribute(self.type))
        return found

    def files(self) -> list[str]:
        """Addresses of the files with reward functions."""
        policies = [policy for policy in (self.grpo, self.ppo) if policy]
        return [reward.python.uri for policy in policies for reward in policy.rewards if reward.python]

    def sources(self) -> list[tuple[str, ModelSource]]:
        """(field, source) of the models that the method needs beside the one that it trains."""
        found: list[tuple[str, ModelSource]] = []
        for name, options in (("dpo", self.dpo), ("kto", self.kto)):
            if options and options.reference_model:
                found.append((f"spec.method.{name}.referenceModel", options.reference_model))
        if self.gkd:
            found.append(("spec.method.gkd.teacher", self.gkd.teacher))
        for name, policy in (("grpo", self.grpo), ("ppo", self.ppo)):
            for number, reward in enumerate(policy.rewards if policy else []):
                if reward.model:
                    found.append((f"spec.method.{name}.rewards[{number}].model", reward.model))
        return found


assert set(get_args(MethodType)) == MEMBERS.keys()
