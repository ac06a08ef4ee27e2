"""snn-ext adapter for snnTorch."""
