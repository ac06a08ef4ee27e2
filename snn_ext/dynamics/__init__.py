"""A spiking neuron as data and as plain torch functions; no modules, no framework."""
