"""From conversations to tokens (rendering, content masks, splits, batches), and sets of questions."""
