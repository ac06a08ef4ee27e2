"""Surrogate gradients, under a short name: see `snn_ext.dynamics.surrogates`."""

from snn_ext.dynamics.surrogates import *
