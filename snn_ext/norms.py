"""Batch norms for membranes and time, under a short name: see `snn_ext.methods`."""

from snn_ext.methods.batch_norms import *
from snn_ext.methods.conversion import *
from snn_ext.methods.norms import *
from snn_ext.methods.temporal import *
