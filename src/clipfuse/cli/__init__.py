"""The command line: one file a verb; torch and transformers are imported inside verbs that need them."""
