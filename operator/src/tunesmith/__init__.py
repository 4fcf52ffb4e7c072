"""tunesmith: fine-tune, merge and serve language models on Kubernetes."""

__version__ = "0.1.0"
