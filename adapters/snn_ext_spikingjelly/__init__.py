"""snn-ext adapter for SpikingJelly."""
