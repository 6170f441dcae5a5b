"""What a bundle keeps of the original: tasks, golden prompts, perplexity."""
