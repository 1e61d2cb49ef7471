"""Model organisms: small VLMs of the real transformers classes whose answer is known, and how they were trained."""
