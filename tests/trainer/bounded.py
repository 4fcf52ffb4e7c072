"""A process that reads and tokenises a plan's rows with so many more bytes of memory than after a small plan's:
`python bounded.py SMALL LARGE BYTES kept|held|streamed`, kept in the cache, held in memory, or streamed.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from tunesmith.training.plan import TrainPlan
from tunesmith_trainer.cache import Cache, cache_of
from tunesmith_trainer.masks import Masker
from tunesmith_trainer.model import load_tokenizer
from tunesmith_trainer.reading import read_datasets
from tunesmith_trainer.rowstream import stream_texts
from tunesmith_trainer.tokens import Limit, Tokens, tokenize


def made(plan: TrainPlan, kept: bool) -> Tokens:
    """The tokens of a plan's rows."""
    cache = cache_of(plan) if kept else Cache()
    rows = read_datasets(plan.datasets, plan.method.type, 0, cache=cache).rows
    return tokenize(rows, Masker(load_tokenizer(plan.model), "All"), Limit.of(plan), cache)


def taken() -> int:
    """Bytes of memory that are this process's own; files that are mapped are not counted."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmData")) * 1024


def streamed(plan: TrainPlan) -> int:
    """The number of tokens of a plan's steps, of rows that are streamed."""
    stream = stream_texts(plan, Masker(load_tokenizer(plan.model), "All"))
    return sum(len(stream.example(number)["input_ids"]) for number in range(len(stream)))


def main() -> None:
    """Print whether all tokens are there, and the bytes of their table; of streamed ones their number."""
    small, large = (TrainPlan.model_validate_json(Path(path).read_bytes()) for path in sys.argv[1:3])
    if sys.argv[4] == "streamed":
        streamed(small)
        resource.setrlimit(resource.RLIMIT_DATA, (taken() + int(sys.argv[3]),) * 2)
        print(streamed(large))
        return
    kept = sys.argv[4] == "kept"
    made(small, kept)  # what is loaded once is no part of it
    resource.setrlimit(resource.RLIMIT_DATA, (taken() + int(sys.argv[3]),) * 2)
    found = made(large, kept)
    count = sum(len(found.table[place]["input_ids"]) for place in range(len(found.table)))
    print(count == found.count, found.table.data.nbytes)


if __name__ == "__main__":
    main()
