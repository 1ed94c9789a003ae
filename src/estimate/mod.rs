//! From patterns to an index: what each head computes for this prompt.
