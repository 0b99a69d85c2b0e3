"""Images and captions to latents and embeddings on disk, and latents back to images: by frozen models of others, as they call them."""
