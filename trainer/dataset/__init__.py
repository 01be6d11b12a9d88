"""From whatever people upload to pictures worth training on: read, decode, clean, split, report."""
