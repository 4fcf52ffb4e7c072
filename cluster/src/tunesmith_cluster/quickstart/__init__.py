"""`make quickstart`: from nothing to an answer of a tuned model, on whatever cluster there is."""
