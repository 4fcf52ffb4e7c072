"""What to train, resolved: pure, without torch, used by the operator and by the trainer alike."""
