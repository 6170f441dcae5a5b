"""OpenAI's API over one bundle: what ``maas-edge serve`` and the platform's onnx engine run."""
