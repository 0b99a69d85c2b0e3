"""Where the images come from: sources, one tensor in memory, captions, and which content files have."""
