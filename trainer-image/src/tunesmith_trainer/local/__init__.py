"""Training without a cluster: a FineTuneJob's file -> processes on the machine at hand, by the trainer of the pods."""
