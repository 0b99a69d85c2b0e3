"""FID and its kin: feature networks and the scores from their features."""
