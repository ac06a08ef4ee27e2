"""The equations in plain torch, under a short name: see `snn_ext.dynamics.functional`."""

from snn_ext.dynamics.functional import *
