"""Batch norms for membranes and time, under a short name: see `snn_ext.methods.norms`."""

from snn_ext.methods.norms import *
from snn_ext.methods.temporal import *
