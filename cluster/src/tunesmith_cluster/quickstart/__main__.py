"""`python -m tunesmith_cluster.quickstart`."""

from tunesmith_cluster.quickstart.main import main

main()
