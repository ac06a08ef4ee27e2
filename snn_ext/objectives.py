"""Objectives, under a short name: see `snn_ext.methods.objectives`."""

from snn_ext.methods.objectives import *
