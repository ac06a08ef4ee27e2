"""Neurons with a learnable initial membrane, under a short name: see `snn_ext.methods.neurons`."""

from snn_ext.methods.neurons import *
