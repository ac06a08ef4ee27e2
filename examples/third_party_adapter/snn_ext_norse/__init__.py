"""snn-ext adapter for norse."""
