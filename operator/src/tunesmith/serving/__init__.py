"""What the operator and the agents of a ModelDeployment's pods tell each other."""
