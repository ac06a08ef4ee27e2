"""How methods get into a model: adapters, sites, plans, and everything that keeps a patched model safe."""
