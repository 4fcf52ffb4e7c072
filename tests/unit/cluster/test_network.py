"""The pod network, in a network namespace of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tunesmith_cluster.environments import ROOT

# What an `up` leaves that is killed after the first command of each part.
CUT_SHORT = """
ip link add tunesmith0 type bridge
iptables --wait --table nat --new-chain TUNESMITH-POSTROUTING
"""
CREATE = "from tunesmith_cluster import network; network._add_bridge(0); network._hide_pods_outside()"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make networks")
@pytest.mark.parametrize("before", ["", CUT_SHORT], ids=["anew", "after a kill"])
def test_the_network_is_whole_whatever_was_there_of_it(before: str) -> None:
    script = f"""set -e
mount -t sysfs none /sys
{before}
"$0" -c "{CREATE}"
"$0" -c "{CREATE}"
ip -4 -brief address show tunesmith0
iptables --table nat --list-rules"""
    command = ["unshare", "--net", "--mount", "sh", "-c", script, sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "cluster" / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("10.222.0.1/24") == 1
    rules = [line for line in done.stdout.splitlines() if line.startswith("-A")]
    assert sorted(rules) == [
        "-A POSTROUTING -j TUNESMITH-POSTROUTING",
        "-A TUNESMITH-POSTROUTING -s 10.222.0.0/16 ! -d 10.222.0.0/16 -j MASQUERADE",
    ]
