"""A bundle beside llama-cpp-python on the same weights, threads and prompts."""
