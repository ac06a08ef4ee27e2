"""The equations of `snn_ext.dynamics`, fast."""
