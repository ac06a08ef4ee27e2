"""The papers' experiments on real data sets: settings, networks, data, and one training loop for all."""
