"""What a training takes of one device's memory. Pure arithmetic; every term and its source is in docs/memory.md."""

from __future__ import annotations

from tunesmith.api.base import Model
from tunesmith.training.activations import Widths, peak
from tunesmith.training.architecture import ModelFacts
from tunesmith.training.plan import DistributionPlan, TrainPlan
from tunesmith.training.trainable import trained

GIB = 2**30
ADAM = 8  # two float32 moments of each trained weight (arXiv 1711.05101)
EIGHT_BIT = 2 + 8 / 256  # two bytes, and float32 scales of blocks of 256 (arXiv 2110.02861; bitsandbytes)
PROJECTED = 128  # rank of GaLore and APOLLO
MASTER = 4  # float32 copy of each trained weight that DeepSpeed keeps (arXiv 1910.02054, section 3.1)
# NF4: half a byte, one byte of scale for 64 weights, one float32 of scale for 256 of those (arXiv 2305.14314).
NF4 = 1 / 2 + 1 / 64 + 4 / (64 * 256)
INT8 = 1.0  # and a float32 of scale for each row (arXiv 2208.07339)
CONTEXT = int(0.8 * GIB)  # CUDA's context and the libraries' kernels and workspaces
COMMUNICATION = GIB // 2  # NCCL's channels
LIBRARIES = int(0.9 * GIB)  # of a trainer on CPU, before it loads a model
FRAGMENTATION = 0.05  # of all that torch's allocator holds
BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size, in elements
LIVE = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters, in elements
GROUP = 1_000_000_000  # DeepSpeed's sub_group_size, in elements


PAIRS = frozenset({"DPO", "CPO", "SimPO", "ORPO", "RewardModel"})
"""Methods whose rows are two sequences: with the better answer, and with the worse."""


class Estimate(Model):
    """Bytes of one device, and of the host where something is kept there."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """What comes and goes within a step: activations, logits, casts of weights, the optimizer's temporaries."""
    overhead: int
    """Libraries, communication buffers and fragmentation."""
    host: int = 0
    """Of one pod's processes together."""

    @property
    def total(self) -> int:
        """Bytes of one device."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.overhead


def state_bytes(plan: TrainPlan, facts: ModelFacts, number: int) -> int:
    """Bytes of the optimizer's state of `number` weights."""
    match plan.training.optimizer:
        case "AdamW8bit" | "PagedAdamW8bit":
            return int(EIGHT_BIT * number)
        case "Adafactor":  # a row and a column for each matrix
            return 4 * sum(sides for _, sides in facts.linears.values())
        case "GaLore" | "APOLLO":  # two moments of the projected gradients, and the projection
            rest = max(0, number - facts.linear)
            return min(ADAM * number, (ADAM + 4) * PROJECTED * sum(s for _, s in facts.linears.values()) + ADAM * rest)
        case _:
            return ADAM * number


def held_beside(plan: TrainPlan) -> int:
    """Models that each process holds beside the one that it trains: the reference, where it is not the base below the
    adapters, or the teacher. They are counted as large as the model; reward models are not counted.
    """
    method, full = plan.method, plan.tuner.type == "Full"
    if method.type in ("DPO", "KTO"):
        return int(full or bool(method.models))
    if method.grpo or method.ppo:
        weight = method.grpo.beta if method.grpo else method.ppo.kl_weight if method.ppo else 0
        return int(full and weight > 0)
    return int(method.type == "GKD")


def base_bytes(plan: TrainPlan, facts: ModelFacts, compute: int) -> int:
    """Bytes of the model's own weights where they are held whole. bitsandbytes quantises linear modules only."""
    match plan.tuner.quantization or facts.packed:
        case "NF4":
            return int(facts.linear * NF4) + (facts.parameters - facts.linear) * compute
        case "Int8":
            rows = sum(sides for _, sides in facts.linears.values()) // 2
            return int(facts.linear * INT8) + 4 * rows + (facts.parameters - facts.linear) * compute
        case _:
            return facts.parameters * compute


def estimate(plan: TrainPlan, facts: ModelFacts, distribution: DistributionPlan, cpu: bool = False) -> Estimate:
    """Memory of one device under `distribution`. With `cpu` the processes share the host's, without accelerators."""
    if distribution.sequence_parallel > 1:  # of a row each has a part, and of all heads' whole rows as much
        shorter = -(-plan.training.max_length // distribution.sequence_parallel)
        plan = plan.model_copy(update={"training": plan.training.model_copy(update={"max_length": shorter})})
    if plan.method.type in PAIRS:
        twice = 2 * plan.training.micro_batch_size
        plan = plan.model_copy(update={"training": plan.training.model_copy(update={"micro_batch_size": twice})})
    float32 = plan.training.dtype == "Float32" or (plan.training.dtype == "Auto" and cpu)
    compute, full = 4 if float32 else 2, plan.tuner.type == "Full"
    sharded = distribution.strategy.startswith("ZeRO")
    # Full, unsharded: float32 weights under autocast, whose casts live as long as the forward pass.
    held = 4 if full and not sharded else compute
    widths = Widths(compute, held if full else compute)
    number = trained(plan, facts)
    passing = peak(plan, facts, widths, cpu)
    if full and distribution.strategy == "DDP" and distribution.tensor_parallel == 1 and compute == 2:
        passing += 2 * (facts.linear + facts.experts)
    if plan.tuner.quantization or facts.packed:  # one layer's weights at a time, as they were
        passing += compute * facts.hidden * max(facts.intermediate, facts.heads * facts.head_dim)
    if facts.experts_sides and not full and not plan.tuner.target_modules:
        # PEFT adds an adapter to experts by copies of them: the sum, kept by each layer, and the product at hand.
        copies = 1 if plan.training.gradient_checkpointing else facts.layers
        passing += compute * (copies + 1) * facts.experts // facts.layers
    adapters = 0 if full else number
    beside = held_beside(plan) * facts.parameters * held
    if distribution.tensor_parallel > 1:
        return _tensor(plan, facts, distribution, cpu, compute, held, number, passing)
    if sharded:
        return _zero(plan, facts, distribution, cpu, compute, number, adapters, beside, passing)
    if distribution.strategy == "FSDP2":
        return _fsdp(plan, facts, cpu, compute, held, number, adapters, beside, passing)
    # AdamW over lists of tensors makes one more of their size (torch.optim: foreach). On CPU it goes one by one.
    temporary = 4 * (facts.largest if full else 0) if cpu else 4 * number
    buckets = 4 * number if plan.world_size > 1 else 0  # DistributedDataParallel without gradient_as_bucket_view
    weights, gradients = base_bytes(plan, facts, held) + 4 * adapters, 4 * number
    optimizer = state_bytes(plan, facts, number)
    if distribution.devices > 1:  # whole layers, so that one more may be on a device; and what the layers keep
        over, layer = distribution.devices, facts.layer / facts.parameters
        weights, gradients, optimizer = (int(size * (1 / over + layer)) for size in (weights, gradients, optimizer))
        temporary, buckets = temporary // over, buckets // over
    return _estimate(plan, cpu, weights + beside, gradients, optimizer, max(passing, temporary), buckets)


def _tensor(
    plan: TrainPlan,
    facts: ModelFacts,
    distribution: DistributionPlan,
    cpu: bool,
    compute: int,
    held: int,
    number: int,
    passing: int,
) -> Estimate:
    """Tensor parallelism (arXiv 1909.08053): each process its part of the matrices, and all of the rest; several groups
    share both out, as FSDP2 does. Activations are taken as whole, though the inner ones are parts.
    """
    size, others = distribution.tensor_parallel, plan.world_size // distribution.tensor_parallel
    matrices = facts.linear + facts.experts
    share = (matrices / size + facts.parameters - matrices) / facts.parameters / others
    weights, gradients = int(share * facts.parameters * held), int(share * 4 * number)
    optimizer = int(share * state_bytes(plan, facts, number))
    layer, ends = facts.layer // size, facts.embeddings + facts.head
    buckets = (compute + 4) * (2 * layer + ends) if others > 1 else 0
    if others == 1 and compute == 2:  # casts, which live as long as the forward pass
        passing += 2 * (facts.linear + facts.experts) // size
    return _estimate(plan, cpu, weights, gradients, optimizer, max(passing, int(share * 4 * number)), buckets)


def _fsdp(
    plan: TrainPlan,
    facts: ModelFacts,
    cpu: bool,
    compute: int,
    held: int,
    number: int,
    adapters: int,
    beside: int,
    passing: int,
) -> Estimate:
    """FSDP2: each process keeps its part of everything, float32 where it is trained (arXiv 2304.11277, section 3)."""
    world = plan.world_size
    weights = (base_bytes(plan, facts, held) + 4 * adapters + beside) // world
    gradients, optimizer = 4 * number // world, state_bytes(plan, facts, number) // world
    # Gathered at a time: the ends, and a layer with the next one; and the gradients of a layer on their way.
    trained_part = min(1.0, number / facts.parameters)
    layer, ends = facts.layer, facts.embeddings + facts.head
    buckets = compute * (2 * layer + ends) + int(4 * trained_part * (layer + ends))
    return _estimate(plan, cpu, weights, gradients, optimizer, max(passing, 4 * number // world), buckets)


def _zero(
    plan: TrainPlan,
    facts: ModelFacts,
    distribution: DistributionPlan,
    cpu: bool,
    compute: int,
    number: int,
    adapters: int,
    beside: int,
    passing: int,
) -> Estimate:
    """ZeRO: weights in the compute type, and each process keeps its part of the rest (arXiv 1910.02054, figure 1)."""
    world, stage = plan.world_size, int(distribution.strategy[-1])
    whole = base_bytes(plan, facts, compute) + compute * adapters
    weights = (whole + beside) // (world if stage == 3 else 1)
    gradients = compute * number // (1 if stage == 1 else world)
    optimizer = (state_bytes(plan, facts, number) + MASTER * number) // world
    # Buckets of gradients on their way, made at full size; two where communication overlaps (stages 1 and 2).
    buckets = compute * (min(BUCKET, number) if cpu else BUCKET) * (1 if stage == 3 else 2)
    if stage == 3:  # weights that are gathered at a time
        buckets += min(whole, compute * (LIVE + facts.largest))
    # At the step: the part's float32 gradients, and as many temporaries of AdamW. ZeRO-3 goes by groups.
    temporary = 8 * min(number // world, GROUP if stage == 3 else number)
    host = 0
    if distribution.offload != "None" and not cpu:
        # float32 weights, moments and gradients, and a copy in the compute type on its way back.
        host = optimizer + (4 + compute) * number // world
        gradients = optimizer = temporary = 0
        buckets += 2 * compute * facts.largest
        if distribution.offload == "All":
            host += weights
            weights = 0
    return _estimate(
        plan, cpu, weights, gradients, optimizer, max(passing, temporary), buckets, host * plan.processes_per_node
    )


def _estimate(
    plan: TrainPlan,
    cpu: bool,
    weights: int,
    gradients: int,
    optimizer: int,
    activations: int,
    buckets: int,
    host: int = 0,
) -> Estimate:
    """The parts, with what comes on top of them."""
    fixed = LIBRARIES if cpu else CONTEXT + (COMMUNICATION if plan.world_size > 1 else 0)
    allocated = weights + gradients + optimizer + activations + buckets
    return Estimate(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        overhead=fixed + buckets + int(FRAGMENTATION * allocated),
        host=host,
    )
