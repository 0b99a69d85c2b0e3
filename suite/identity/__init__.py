"""What a scheme is made of: its code as a digest, at its parameters."""
