"""The gateway: relay/ is the data plane; everything else is the control plane."""
