"""How many weights a tuner trains: exact for LoRA and all weights, else a bound from above or close to it."""

from __future__ import annotations

from tunesmith.api.tuner import PeftType
from tunesmith.training.architecture import ModelFacts
from tunesmith.training.plan import TrainPlan, TunerPlan

# Weights of an adapter for each input and output of its modules: (option of PEFT, its default, times its value).
PER_SIDE: dict[PeftType, tuple[str, int, float]] = {
    "AdaLoRA": ("init_r", 12, 1),
    "BOFT": ("boft_block_size", 4, 1),
    "DeLoRA": ("r", 8, 1),
    "GraLoRA": ("r", 32, 1),
    "HiRA": ("r", 32, 1),
    "HRA": ("r", 8, 1),
    "IA3": ("", 1, 1),
    "LNTuning": ("", 1, 1),
    "LoHa": ("r", 8, 2),
    "LoKr": ("r", 8, 0.25),
    "MiSS": ("r", 64, 1),
    "OFT": ("oft_block_size", 32, 0.5),
    "RandLoRA": ("", 2, 1),
    "SHiRA": ("r", 32, 1),
    "VBLoRA": ("r", 4, 1),
    "VeRA": ("", 3, 1),
}
PROMPTS = frozenset({"PrefixTuning", "PromptTuning", "PTuning"})


def targeted(tuner: TunerPlan, facts: ModelFacts) -> dict[str, tuple[int, int]]:
    """The linear modules that get an adapter. A pattern counts as all of them."""
    wanted = {target.rsplit(".", 1)[-1] for target in tuner.target_modules}
    return {name: sizes for name, sizes in facts.linears.items() if not wanted or name in wanted}


def trained(plan: TrainPlan, facts: ModelFacts) -> int:
    """How many weights are trained."""
    tuner = plan.tuner
    if tuner.type == "Full":
        if tuner.last_layers is None or tuner.trainable_pattern is not None:
            return facts.parameters
        return min(facts.parameters, tuner.last_layers * facts.layer)
    sides = sum(sides for _, sides in targeted(tuner, facts).values())
    whole = saved_whole(tuner, facts)
    if tuner.peft:
        return whole + other(tuner, facts, sides)
    experts = 0 if tuner.target_modules else facts.experts_sides
    return whole + tuner.rank * (sides + experts) + (sides // 2 if tuner.dora else 0)


def saved_whole(tuner: TunerPlan, facts: ModelFacts) -> int:
    """Weights of modulesToSave. Where the head is the embeddings, either is both; what is small is left out."""
    names = set(tuner.modules_to_save)
    ends = facts.embeddings if names & {"embed_tokens", *(["lm_head"] if facts.tied else [])} else 0
    head = facts.head if "lm_head" in names else 0
    return ends + head + sum(size for name, (size, _) in facts.linears.items() if name in names)


def other(tuner: TunerPlan, facts: ModelFacts, sides: int) -> int:
    """Weights of PEFT's other adapters."""
    assert tuner.peft
    kind, options = tuner.peft.type, tuner.peft.options
    if kind in PROMPTS:
        tokens = _number(options.get("num_virtual_tokens"), 20) * facts.hidden
        return tokens * (2 * facts.layers if kind == "PrefixTuning" else 1) + (
            3 * facts.hidden**2 if kind == "PTuning" else 0
        )
    if kind == "FourierFT":
        return _number(options.get("n_frequency"), 1000) * facts.layers * len(targeted(tuner, facts))
    if kind == "C3A":
        size = sum(size for size, _ in targeted(tuner, facts).values())
        return size // _number(options.get("block_size"), 256)
    name, default, factor = PER_SIDE[kind]
    return int(factor * _number(options.get(name), default) * sides)


def _number(value: object, default: int) -> int:
    return value if isinstance(value, int) and value > 0 else default
