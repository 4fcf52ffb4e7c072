"""What takes long to import, for the server that test processes are forked from. Nothing here starts a thread."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # noqa: F401
import tunesmith_trainer.build
import tunesmith_trainer.infer.job
import tunesmith_trainer.methods.gkd
import tunesmith_trainer.methods.grpo
import tunesmith_trainer.methods.ppo
import tunesmith_trainer.methods.supervised
import tunesmith_trainer.progress
import tunesmith_trainer.train  # noqa: F401
from tunesmith_trainer import curves

curves.draw = lambda run: []  # tests that ask for pictures train in their own process
