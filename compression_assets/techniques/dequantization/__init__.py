"""D: from stored codes back to full precision."""
