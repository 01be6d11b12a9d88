"""A job whose folder lies in an object store: fetched, trained on a local disk, and sent back while it trains."""
