"""Models on devices: what makes, proves, ships and runs an ONNX bundle."""
