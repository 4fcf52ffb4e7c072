"""The heavy half of tunesmith: trains, merges and checks models as a plan says."""
