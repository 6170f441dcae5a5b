"""Weight sources: hf, file, s3 and wheel URIs; fetched once, hashed, resumable."""
