"""`python -m tunesmith_cluster`."""

from tunesmith_cluster.cli import main

main()
