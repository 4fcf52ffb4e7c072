"""What kopf calls: the only place that imports it."""
