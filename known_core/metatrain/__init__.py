"""Meta-training of KNOWN: collect forgetting trajectories of small networks, fit the hyper-model on them."""
