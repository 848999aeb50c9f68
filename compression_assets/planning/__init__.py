"""What a study will come to, before any weight is downloaded: sizes, memory, tokens, time, disk. Pure arithmetic."""
